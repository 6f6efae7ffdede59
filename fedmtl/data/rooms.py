"""Random furnished rooms for the ray caster, in two visual domains."""

import colorsys
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmtl.data.raycast import BALL, BOX, CHECKER, DADO, FACES, PLAIN, PLANKS, ROOM, ROUND, SPECKLE, STRIPES, Scene

CLASSES = ["wall", "floor", "ceiling", "box", "ball", "cylinder", "table", "chair", "lamp", "picture"]
PARTS = [
    "background",
    *("table top", "table leg"),
    *("chair seat", "chair back", "chair leg"),
    *("lamp base", "lamp pole", "lamp shade"),
]
ROOM_CLASSES = [0, 0, 0, 0, 1, 2]  # four walls, floor, ceiling
FINISHES = [PLAIN, PLAIN, PLAIN, PLANKS, STRIPES]  # patterns of boxes
WALLPAPERS = [PLAIN, PLAIN, STRIPES, DADO]
Domain = Literal["day", "night"]
Random = np.random.Generator
Triple = tuple[float, float, float]
Interval = tuple[float, float]


class Look(NamedTuple):
    """What sets a domain apart; intervals are drawn from uniformly.

    Attributes:
        eye: height of the camera in metres.
        fov: angle of view in degrees.
        lamp: height of the light as a share of the room's.
        light: its linear RGB power.
        ambient: linear RGB light from everywhere.
        exposure: mean brightness of the picture.
        noise: sensor noise in grey levels.
        walls: saturation and value of the walls.
        floor: the same of the floor.
        goods: the same of all objects but the salient one.
        floors: patterns of the floor.
    """

    eye: Interval
    fov: Interval
    lamp: Interval
    light: Triple
    ambient: Triple
    exposure: Interval
    noise: Interval
    walls: tuple[Interval, Interval]
    floor: tuple[Interval, Interval]
    goods: tuple[Interval, Interval]
    floors: tuple[int, ...]


LOOKS: dict[Domain, Look] = {
    "day": Look(
        eye=(1.25, 1.75),
        fov=(58, 78),
        lamp=(0.85, 0.97),
        light=(1.0, 0.97, 0.92),
        ambient=(0.50, 0.52, 0.55),
        exposure=(0.50, 0.62),
        noise=(1.5, 3.5),
        walls=((0.03, 0.28), (0.70, 0.95)),
        floor=((0.10, 0.50), (0.35, 0.75)),
        goods=((0.05, 0.35), (0.25, 0.85)),
        floors=(PLANKS, PLANKS, CHECKER, SPECKLE),
    ),
    "night": Look(
        eye=(0.50, 0.95),
        fov=(66, 86),
        lamp=(0.50, 0.75),
        light=(1.6, 1.05, 0.62),
        ambient=(0.13, 0.17, 0.27),
        exposure=(0.34, 0.46),
        noise=(3.0, 6.0),
        walls=((0.20, 0.50), (0.30, 0.65)),
        floor=((0.05, 0.35), (0.20, 0.50)),
        goods=((0.05, 0.40), (0.25, 0.80)),
        floors=(CHECKER, SPECKLE, STRIPES, PLANKS),
    ),
}


ACCENT = (0.85, 1.0), (0.6, 0.95)  # saturation and value of the salient object


class Solid(NamedTuple):
    """One primitive of an object, in the object's frame: z from the floor, x and y from its middle."""

    kind: int
    centre: Triple
    half: Triple
    part: int = 0
    taper: float = 0.0
    tone: float = 1.0  # brightness of its colour


def _disc(x: float, y: float, bottom: float, top: float, radius: float, **more: Any) -> Solid:
    return Solid(ROUND, (x, y, (bottom + top) / 2), (radius, radius, (top - bottom) / 2), **more)


def _block(x: float, y: float, bottom: float, top: float, width: float, length: float, **more: Any) -> Solid:
    return Solid(BOX, (x, y, (bottom + top) / 2), (width, length, (top - bottom) / 2), **more)


def _legs(width: float, length: float, top: float, thick: float, part: int) -> list[Solid]:
    return [
        _block(sx * (width - thick), sy * (length - thick), 0, top, thick, thick, part=part, tone=0.6)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def _box(rng: Random) -> list[Solid]:
    width, length = rng.uniform(0.15, 0.45, 2)
    return [_block(0, 0, 0, rng.uniform(0.25, 1.5 if rng.random() < 0.3 else 0.8), width, length)]


def _ball(rng: Random) -> list[Solid]:
    radius = rng.uniform(0.14, 0.38)
    return [Solid(BALL, (0, 0, radius), (radius, radius, radius))]


def _cylinder(rng: Random) -> list[Solid]:
    height = rng.uniform(0.3, 1.1)
    return [_disc(0, 0, 0, height, rng.uniform(0.13, 0.33), taper=rng.uniform(-0.1, 0.1) / height)]


def _table(rng: Random) -> list[Solid]:
    top, thick = rng.uniform(0.6, 0.8), rng.uniform(0.05, 0.09)
    if rng.random() < 0.3:
        radius = rng.uniform(0.4, 0.65)
        foot = _disc(0, 0, 0, top - thick, rng.uniform(0.06, 0.12), part=2, tone=0.6)
        return [_disc(0, 0, top - thick, top, radius, part=1), foot]
    width, length = rng.uniform(0.45, 0.8), rng.uniform(0.32, 0.5)
    plate = _block(0, 0, top - thick, top, width, length, part=1)
    return [plate, *_legs(width, length, top - thick, rng.uniform(0.035, 0.06), part=2)]


def _chair(rng: Random) -> list[Solid]:
    width, length = rng.uniform(0.2, 0.28, 2)
    seat, back, thick = rng.uniform(0.4, 0.5), rng.uniform(0.85, 1.1), rng.uniform(0.05, 0.1)
    plate = _block(0, 0, seat - thick, seat, width, length, part=3)
    rest = _block(0, length - 0.03, seat, back, width, 0.03, part=4, tone=0.85)
    return [plate, rest, *_legs(width, length, seat - thick, rng.uniform(0.025, 0.045), part=5)]


def _lamp(rng: Random) -> list[Solid]:
    height, shade = rng.uniform(1.1, 1.7), rng.uniform(0.25, 0.4)
    radius = rng.uniform(0.2, 0.3)
    return [
        _disc(0, 0, 0, 0.06, rng.uniform(0.14, 0.22), part=6, tone=0.5),
        _disc(0, 0, 0.06, height - shade, rng.uniform(0.025, 0.04), part=7, tone=0.5),
        _disc(0, 0, height - shade, height, radius, part=8, taper=-rng.uniform(0.3, 0.8) * radius / shade, tone=1.3),
    ]


OBJECTS: list[Callable[[Random], list[Solid]]] = [_box, _ball, _cylinder, _table, _chair, _lamp]
FIRST_OBJECT = CLASSES.index("box")  # class of the first of `OBJECTS`


class Thing(NamedTuple):
    """An object in its place."""

    category: int
    solids: list[Solid]
    x: float
    y: float
    z: float
    yaw: float
    radius: float


def random_scene(rng: Random, size: tuple[int, int], domain: Domain) -> Scene:
    """A furnished room and a camera in it.

    Object 1 is the *accent*: it alone has a saturated colour, stands well inside the view and is at most
    partly hidden behind another object. The saliency label is its visible pixels.

    Args:
        rng: decides everything.
        size: (H, W) of the picture in pixels; only the focal length and the width of the view depend on it.
        domain: palette, light and height of the camera.
    """
    look = LOOKS[domain]
    room = np.array([rng.uniform(3.6, 7), rng.uniform(3.6, 7), rng.uniform(2.4, 3.1)])
    (x, y), yaw = _stand(rng, room)
    eye = rng.uniform(*look.eye)
    focal = math.sqrt(size[0] * size[1]) / (2 * math.tan(math.radians(rng.uniform(*look.fov)) / 2))
    half_width = math.atan(size[1] / 2 / focal)
    things = _furnish(rng, room, (x, y), yaw, half_width)
    things += [_picture(rng, room) for _ in range(rng.integers(0, 4))]

    accent = things[0]
    middle = max(solid.centre[2] + solid.half[2] for solid in accent.solids) / 2
    down = math.atan2(eye - middle, math.hypot(accent.x - x, accent.y - y))
    pitch = min(max(down + rng.uniform(-0.35, 0.2) * math.atan(size[0] / 2 / focal), -0.1), 0.6)
    forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), -math.sin(pitch)])
    right = np.array([math.sin(yaw), -math.cos(yaw), 0])

    light = room * [*rng.uniform(0.2, 0.8, 2), rng.uniform(*look.lamp)]
    bounce = rng.standard_normal(3)
    return Scene(
        camera=_floats([x, y, eye]),
        axes=_floats([right, np.cross(forward, right), forward]),
        focal=focal,
        light=_floats(light),
        light_colour=_floats(np.array(look.light) * rng.uniform(0.8, 1.2, 3)),
        ambient=_floats(np.array(look.ambient) * rng.uniform(0.85, 1.15, 3)),
        bounce=_floats(bounce / np.linalg.norm(bounce)),
        exposure=rng.uniform(*look.exposure),
        noise=rng.uniform(*look.noise),
        **_surfaces(rng, room, things, look),
    )


def _stand(rng: Random, room: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """Where the camera is, close to a wall, and its heading, into the room."""
    axis, far = rng.integers(0, 2), rng.integers(0, 2)
    position, target = np.empty(2), np.empty(2)
    position[axis], target[axis] = rng.uniform(0.3, 0.8), rng.uniform(0.55, 0.8) * room[axis]
    position[1 - axis], target[1 - axis] = room[1 - axis] * rng.uniform([0.2, 0.3], [0.8, 0.7])
    if far:
        position[axis], target[axis] = room[axis] - position[axis], room[axis] - target[axis]
    dx, dy = target - position
    return (float(position[0]), float(position[1])), math.atan2(dy, dx)


def _furnish(
    rng: Random, room: NDArray[np.float64], camera: tuple[float, float], yaw: float, half_width: float
) -> list[Thing]:
    """Objects within the view that do not overlap, the accent first; small ones may stand on tables."""
    things: list[Thing] = []
    reach = math.hypot(room[0], room[1])
    for number in range(rng.integers(5, 10)):
        kind = int(rng.integers(len(OBJECTS)))
        solids = OBJECTS[kind](rng)
        radius = _radius(solids)
        for _ in range(12):
            span, longest = (0.55, 3.5) if number == 0 else (1.0, reach)
            angle = yaw + half_width * rng.uniform(-span, span)
            distance = radius + rng.uniform(1.1, longest)
            x, y = camera[0] + distance * math.cos(angle), camera[1] + distance * math.sin(angle)
            if _free(x, y, radius, room, things, camera):
                things.append(Thing(FIRST_OBJECT + kind, solids, x, y, 0, rng.uniform(0, 2 * math.pi), radius))
                break
        else:
            if number == 0:  # a small ball fits in front of every camera
                x, y = camera[0] + 1.5 * math.cos(yaw), camera[1] + 1.5 * math.sin(yaw)
                things.append(
                    Thing(CLASSES.index("ball"), [Solid(BALL, (0, 0, 0.2), (0.2, 0.2, 0.2))], x, y, 0, 0, 0.2)
                )
    for table in [thing for thing in things if CLASSES[thing.category] == "table"]:
        if rng.random() < 0.6:
            kind = int(rng.integers(3))
            top = max(solid.centre[2] + solid.half[2] for solid in table.solids)
            small = [_shrink(solid, 0.45) for solid in OBJECTS[kind](rng)]
            place = Thing(FIRST_OBJECT + kind, small, table.x, table.y, top, rng.uniform(0, 6.3), _radius(small))
            things.append(place)
    return things


def _free(
    x: float, y: float, radius: float, room: NDArray[np.float64], things: list[Thing], camera: tuple[float, float]
) -> bool:
    """Whether a disc on the floor is inside the room, off other objects and off the line of sight to the accent."""
    if not (radius + 0.05 < x < room[0] - radius - 0.05 and radius + 0.05 < y < room[1] - radius - 0.05):
        return False
    if any(math.hypot(x - thing.x, y - thing.y) < radius + thing.radius for thing in things):
        return False
    if not things:
        return True
    dx, dy = things[0].x - camera[0], things[0].y - camera[1]
    along = ((x - camera[0]) * dx + (y - camera[1]) * dy) / (dx * dx + dy * dy)
    off = abs((x - camera[0]) * dy - (y - camera[1]) * dx) / math.hypot(dx, dy)
    return not (0 < along < 1 and off < radius + 0.5 * things[0].radius)


def _picture(rng: Random, room: NDArray[np.float64]) -> Thing:
    """A framed picture on a wall."""
    axis, far = rng.integers(0, 2), rng.integers(0, 2)
    width, height = rng.uniform(0.25, 0.6), rng.uniform(0.2, 0.4)
    frame = Solid(BOX, (0, 0, 0), (0.03, width, height), tone=0.4)
    canvas = Solid(BOX, (0, 0, 0), (0.04, 0.85 * width, 0.85 * height))
    place = room[:2] * rng.uniform(0.25, 0.75, 2)
    place[axis] = room[axis] * far
    z = room[2] * rng.uniform(0.5, 0.65)
    return Thing(CLASSES.index("picture"), [frame, canvas], place[0], place[1], z, axis * math.pi / 2, 0)


def _surfaces(rng: Random, room: NDArray[np.float64], things: list[Thing], look: Look) -> dict[str, Any]:
    """The scene's arrays of primitives: the room, then all solids of all things."""
    rows: list[tuple[Any, ...]] = [(ROOM, room / 2, room / 2, 1, 0, 0, 0, 0, 0, (0, 0, 0), PLAIN)]
    for instance, thing in enumerate(things, start=1):
        cos, sin = math.cos(thing.yaw), math.sin(thing.yaw)
        colour = _colour(rng, *(ACCENT if instance == 1 else look.goods))
        finish = FINISHES[rng.integers(len(FINISHES))]
        for solid in thing.solids:
            (x, y, z), tone = solid.centre, solid.tone
            centre = (thing.x + cos * x - sin * y, thing.y + sin * x + cos * y, thing.z + z)
            paint = tuple(min(tone * value, 1.0) for value in colour)
            pattern = finish if solid.kind == BOX else PLAIN
            row = (solid.kind, centre, solid.half, cos, sin, solid.taper, instance, solid.part)
            rows.append((*row, thing.category, paint, pattern))
    kind, middle, half, cosine, sine, taper, number, part, category, paints, finishes = zip(*rows, strict=True)
    classes, patterns = np.tile(np.array([category, finishes])[..., None], FACES)
    period = np.full(classes.shape, 0.12, np.float32)
    colours = _floats(paints).repeat(2 * FACES, axis=0).reshape(-1, FACES, 2, 3)
    colours[:, :, 1] *= 0.6
    classes[0], colours[0] = ROOM_CLASSES, _room_colours(rng, look)
    patterns[0, 4], period[0, 4] = look.floors[rng.integers(len(look.floors))], rng.uniform(0.15, 0.45)
    patterns[0, :4] = paper = WALLPAPERS[rng.integers(len(WALLPAPERS))]
    period[0, :4] = -0.15 * room[2] if paper == DADO else rng.uniform(0.2, 0.5)
    return {
        "kind": np.array(kind),
        "centre": _floats(middle),
        "half": _floats(half),
        "cos": _floats(cosine),
        "sin": _floats(sine),
        "taper": _floats(taper),
        "instance": np.array(number),
        "part": np.array(part),
        "category": classes,
        "colours": colours,
        "pattern": patterns,
        "period": period,
    }


def _room_colours(rng: Random, look: Look) -> NDArray[np.float64]:
    """Two colours of each of the room's faces."""
    wall, other = np.array(_colour(rng, *look.walls)), np.array(_colour(rng, *look.walls))
    floor = np.array(_colour(rng, *look.floor, hue=(0.02, 0.14) if rng.random() < 0.75 else (0, 1)))
    ceiling = 0.5 + 0.5 * wall
    return np.array([[wall, 0.7 * wall + 0.3 * other]] * 4 + [[floor, 0.55 * floor], [ceiling, ceiling]])


def _colour(rng: Random, saturation: Interval, value: Interval, hue: Interval = (0, 1)) -> Triple:
    """A random colour by hue, saturation and value, in linear RGB."""
    r, g, b = colorsys.hsv_to_rgb(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value))
    return r**2.2, g**2.2, b**2.2


def _radius(solids: list[Solid]) -> float:
    return max(math.hypot(abs(s.centre[0]) + s.half[0], abs(s.centre[1]) + s.half[1] * (s.kind == BOX)) for s in solids)


def _shrink(solid: Solid, factor: float) -> Solid:
    (x, y, z), (a, b, c) = solid.centre, solid.half
    return solid._replace(centre=(factor * x, factor * y, factor * z), half=(factor * a, factor * b, factor * c))


def _floats(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)
