"""A small ray caster: a scene of boxes, balls and tapered cylinders in a room to an image with exact ground truth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]

ROOM, BOX, BALL, ROUND = range(4)  # kinds of primitives; ROUND is an upright cylinder, cone or anything between
PLAIN, CHECKER, PLANKS, STRIPES, SPECKLE, DADO = range(6)  # patterns that mix a surface's two colours
FACES = 6  # surfaces that a primitive may have; only rooms and boxes use all
RAYS = 65536  # rays cast at once, which bounds memory
SUBPIXELS = np.array([[-1 / 3, 1 / 3], [1 / 3, -1 / 3]], np.float32)[..., None]  # x and y of the further two rays
REACHED = 0.999  # share of the way to a point beyond which the point's own surface is met


@dataclass(frozen=True, eq=False)
class Scene:
    """One room, seen by one camera. World frame: x and y along the floor, z up, metres, a corner at the origin.

    Primitive 0 is the room itself; all others are solid, convex and turned about z only. Faces of rooms and
    boxes are numbered -x, +x, -y, +y, -z, +z; of round primitives: side 0, bottom 4, top 5; a ball has face 0.

    Attributes:
        camera: (3,) position.
        axes: (3, 3) rows are the camera's right, down and forward in world coordinates.
        focal: focal length in pixels; the principal point is the centre of the image.
        light: (3,) position of the lamp.
        light_colour: (3,) its power, in linear RGB.
        ambient: (3,) light from everywhere.
        bounce: (3,) direction from which a little more of the ambient light comes.
        exposure: mean brightness of the developed picture, 0…1.
        noise: standard deviation of the sensor noise in grey levels of 255.
        kind: (P,) kind of primitive.
        centre: (P, 3) centre.
        half: (P, 3) half extents; x is the radius of a ball and the mean radius of a round primitive.
        cos: (P,) cosine of its turn about z.
        sin: (P,) sine of the same.
        taper: (P,) growth of a round primitive's radius per metre of z.
        instance: (P,) object number, 0 for the room.
        part: (P,) part number, 0 for none.
        category: (P, 6) class of each face.
        colours: (P, 6, 2, 3) two linear RGB colours of each face.
        pattern: (P, 6) how they are mixed.
        period: (P, 6) size of the pattern in metres; for DADO the height of the change, from the room's middle.
    """

    camera: Floats
    axes: Floats
    focal: float
    light: Floats
    light_colour: Floats
    ambient: Floats
    bounce: Floats
    exposure: float
    noise: float
    kind: Ints
    centre: Floats
    half: Floats
    cos: Floats
    sin: Floats
    taper: Floats
    instance: Ints
    part: Ints
    category: Ints
    colours: Floats
    pattern: Ints
    period: Floats


@dataclass(frozen=True, eq=False)
class Hits:
    """What N rays met first.

    Attributes:
        distance: (N,) in lengths of the ray's direction.
        surface: (N,) primitive · 6 + face.
        point: (3, N) world position.
        normal: (3, N) unit world normal, towards where the ray came from.
        local: (3, N) position in the primitive's own frame.
    """

    distance: Floats
    surface: Ints
    point: Floats
    normal: Floats
    local: Floats


@dataclass(frozen=True, eq=False)
class Seen:
    """An image and its ground truth, (H, W, …) each.

    Attributes:
        image: uint8 RGB.
        depth: metres along the optical axis.
        normals: unit vectors in the camera's frame (x right, y down, z forward), towards the camera.
        surface: primitive · 6 + face, another number for every smooth surface.
        category: class of the surface.
        instance: object number, 0 for the room.
        part: part number, 0 for none.
    """

    image: NDArray[np.uint8]
    depth: Floats
    normals: Floats
    surface: Ints
    category: Ints
    instance: Ints
    part: Ints


def render(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> Seen:
    """What the camera sees.

    Args:
        scene: the world.
        size: (H, W) in pixels.
        rng: source of the sensor noise.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32).reshape(2, -1) + np.float32(0.5)
    depth, surface = np.empty(y.size, np.float32), np.empty(y.size, np.intp)
    normals, light = np.empty((y.size, 3), np.float32), np.empty((y.size, 3), np.float32)
    for start in range(0, y.size, RAYS):
        chunk = slice(start, start + RAYS)
        direction = pixel_rays(scene, x[chunk], y[chunk], size)
        hits = cast(scene, direction)
        depth[chunk], surface[chunk], light[chunk] = hits.distance, hits.surface, shade(scene, hits, direction).T
        normals[chunk] = _rotate(scene.axes, hits.normal).T
    rough = np.flatnonzero(_contrast(light.reshape(*size, 3)))
    for start in range(0, rough.size, RAYS // 2):
        # Two more rays a pixel smooth the jagged borders of the picture; labels stay those of the pixel's centre.
        chosen = rough[start : start + RAYS // 2]
        sub_x, sub_y = ((at[chosen] + shift).ravel() for at, shift in zip((x, y), SUBPIXELS, strict=True))
        direction = pixel_rays(scene, sub_x, sub_y, size)
        one, two = np.split(shade(scene, cast(scene, direction), direction), 2, axis=1)
        light[chosen] = (light[chosen] + one.T + two.T) / 3
    primitive, image = surface // FACES, develop(scene, light, rng)
    return Seen(
        image=image.reshape(*size, 3),
        depth=depth.reshape(size),
        normals=normals.reshape(*size, 3),
        surface=surface.reshape(size),
        category=scene.category.ravel()[surface].reshape(size),
        instance=scene.instance[primitive].reshape(size),
        part=scene.part[primitive].reshape(size),
    )


def boundaries(surface: Ints, depth: Floats) -> NDArray[np.bool_]:
    """Where neighbouring pixels show different surfaces: the nearer of each such pair, so lines are thin."""
    edge = np.zeros(surface.shape, bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        border = surface[a] != surface[b]
        edge[a] |= border & (depth[a] <= depth[b])
        edge[b] |= border & (depth[b] <= depth[a])
    return edge


def pixel_rays(scene: Scene, x: Floats, y: Floats, size: tuple[int, int]) -> Floats:
    """World directions (3, N) through pixel positions, one metre deep: lengths along them are z-depths."""
    u = (x - np.float32(size[1] / 2)) / np.float32(scene.focal)
    v = (y - np.float32(size[0] / 2)) / np.float32(scene.focal)
    right, down, forward = scene.axes[..., None]
    rays: Floats = right * u + down * v + forward
    return rays


def cast(scene: Scene, direction: Floats) -> Hits:
    """First hits of rays from the camera."""
    room = scene.half[0][:, None]
    _, distance = _pass_box(scene.camera[:, None] - room, direction, room)
    primitive = np.zeros(distance.size, np.intp)
    for kind in (BOX, BALL, ROUND):
        member, ray, reach = meetings(scene, kind, scene.camera, direction)
        np.minimum.at(distance, ray, reach)
        first = reach == distance[ray]
        primitive[ray[first]] = member[first]
    point = scene.camera[:, None] + distance * direction
    local, normal, face = _face(scene, primitive, point)
    return Hits(distance, primitive * FACES + face, point, normal, local)


def shade(scene: Scene, hits: Hits, direction: Floats) -> Floats:
    """Linear RGB light (3, N) that hits send back: ambient light, and Lambert's law with a cast shadow."""
    room = 2 * scene.half[0][:, None]
    corner = np.float32(0.35) * np.exp(-np.minimum(hits.point, room - hits.point) / np.float32(0.3))
    open_ = (1 - corner[0]) * (1 - corner[1]) * (1 - corner[2])
    side = np.float32(0.75) + np.float32(0.25) * _dot(hits.normal, scene.bounce[:, None])
    way = scene.light[:, None] - hits.point
    squared = _dot(way, way)
    facing = _dot(way, hits.normal) / np.sqrt(squared)
    lit = facing > 0
    lit[lit] = ~_shadowed(scene, -way[:, lit])
    direct = np.where(lit, facing, 0) / (np.float32(0.4) + np.float32(0.25) * squared)
    light: Floats = scene.ambient[:, None] * (open_ * side) + scene.light_colour[:, None] * direct
    return _albedo(scene, hits, direction) * light


def develop(scene: Scene, light: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Linear light (N, 3) to an 8-bit picture: automatic exposure, gamma and sensor noise."""
    gain = scene.exposure**2.2 / max(float(light.mean()), 1e-6)
    picture: Floats = 255 * np.clip(light * np.float32(gain), 0, 1) ** np.float32(1 / 2.2)
    picture += np.float32(scene.noise) * rng.standard_normal(light.shape, np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def meetings(scene: Scene, kind: int, origin: Floats, direction: Floats) -> tuple[Ints, Ints, Floats]:
    """Which primitives of a kind are entered by which rays from one point, and where: three arrays (M,).

    Only pairs of a ray and a primitive whose bounding sphere it crosses are worked out; misses are infinite.
    """
    members = np.flatnonzero(scene.kind == kind)
    half, taper, cos, sin = scene.half[members], scene.taper[members], scene.cos[members], scene.sin[members]
    x, y, z = centre = (scene.centre[members] - origin).T
    wide = half[:, 0] + np.abs(taper) * half[:, 2]
    bound = {BOX: _dot(half.T, half.T), BALL: half[:, 0] ** 2, ROUND: wide * wide + half[:, 2] ** 2}[kind]
    slack = _dot(centre, centre) - np.float32(1.02) * bound - np.float32(1e-3)
    along = np.einsum("ck,cn->kn", centre, direction)
    near = along * along > slack[:, None] * _dot(direction, direction)
    which, ray = np.divmod(np.flatnonzero(near), max(direction.shape[1], 1))
    dx, dy, dz = direction[:, ray]
    start = np.stack([-cos * x - sin * y, sin * x - cos * y, -z])[:, which]
    cos, sin, half, taper = cos[which], sin[which], half.T[:, which], taper[which]
    heading = np.stack([cos * dx + sin * dy, cos * dy - sin * dx, dz])
    if kind == BOX:
        enter, leave = _pass_box(start, heading, half)
        reach = np.where((enter < leave) & (enter > 0), enter, np.float32(np.inf))
    elif kind == BALL:
        reach = _enter_ball(start, heading, half[0])
    else:
        reach = _enter_round(start, heading, half, taper)
    return members[which], ray, reach


def _pass_box(origin: Floats, direction: Floats, half: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave a box around the origin; they miss it if they leave first."""
    inverse = 1 / np.where(np.abs(direction) < 1e-7, np.float32(1e-7), direction)
    middle, reach = -origin * inverse, half * np.abs(inverse)
    return (middle - reach).max(axis=0), (middle + reach).min(axis=0)


def _enter_ball(origin: Floats, direction: Floats, radius: Floats) -> Floats:
    a, b = _dot(direction, direction), _dot(origin, direction)
    root = b * b - a * (_dot(origin, origin) - radius * radius)
    distance = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (distance > 0), distance, np.float32(np.inf))


def _enter_round(origin: Floats, direction: Floats, half: Floats, taper: Floats) -> Floats:
    (ox, oy, oz), (dx, dy, dz), (radius, _, height) = origin, direction, half
    here = radius + taper * oz
    a = dx * dx + dy * dy - (taper * dz) ** 2
    b = ox * dx + oy * dy - taper * here * dz
    best = np.full(a.shape, np.inf, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):  # the root is not a number where the side is missed
        root = np.sqrt(b * b - a * (ox * ox + oy * oy - here * here))
        for distance in ((-b - root) / a, (-b + root) / a):
            valid = (np.abs(oz + distance * dz) <= height) & (distance > 0) & (distance < best)
            best = np.where(valid, distance, best)
        for end in (-height, height):
            distance = (end - oz) / dz
            across = (ox + distance * dx) ** 2 + (oy + distance * dy) ** 2
            valid = (across <= (radius + taper * end) ** 2) & (distance > 0) & (distance < best)
            best = np.where(valid, distance, best)
    return best


def _shadowed(scene: Scene, way: Floats) -> NDArray[np.bool_]:
    """Whether something stands between the lamp and the points `way` from it."""
    blocked = np.zeros(way.shape[1], bool)
    for kind in (BOX, BALL, ROUND):
        _, ray, reach = meetings(scene, kind, scene.light, way)
        blocked[ray[reach < REACHED]] = True
    return blocked


def _face(scene: Scene, primitive: Ints, point: Floats) -> tuple[Floats, Floats, Ints]:
    """Local position, world normal and face number of points on primitives' surfaces."""
    cos, sin = scene.cos[primitive], scene.sin[primitive]
    x, y, z = point - scene.centre.T[:, primitive]
    local = np.stack([cos * x + sin * y, cos * y - sin * x, z])
    kind, half, taper = scene.kind[primitive], scene.half.T[:, primitive], scene.taper[primitive]
    across = np.sqrt(local[0] * local[0] + local[1] * local[1])
    radius = half[0] + taper * z
    relative = np.abs(local) / half
    round_ = kind == ROUND
    relative[0] = np.where(round_, across / radius, relative[0])
    relative[1] = np.where(round_, 0, relative[1])
    axis = relative.argmax(axis=0)  # the surface is where a point is farthest out
    flat = (kind == BOX) | (kind == ROOM) | (round_ & (axis == 2))
    along = np.take_along_axis(local, axis[None], axis=0)[0]
    sign = np.where(along > 0, np.float32(1), np.float32(-1)) * np.where(kind == ROOM, np.float32(-1), np.float32(1))
    slope = np.where(round_, -taper * across, z)
    smooth = np.stack([local[0], local[1], slope]) / np.sqrt(across * across + slope * slope + np.float32(1e-12))
    normal = np.where(flat, sign * (axis == np.arange(3)[:, None]), smooth).astype(np.float32)
    world = np.stack([cos * normal[0] - sin * normal[1], sin * normal[0] + cos * normal[1], normal[2]])
    return local, world, np.where(flat, 2 * axis + (along > 0), 0)


def _albedo(scene: Scene, hits: Hits, direction: Floats) -> Floats:
    """Linear RGB colour (3, N) of surfaces, by their patterns."""
    axis = hits.surface % FACES // 2
    u = np.where(axis == 0, hits.local[1], hits.local[0])
    v = np.where(axis == 2, hits.local[1], hits.local[2])
    period, pattern = scene.period.ravel()[hits.surface], scene.pattern.ravel()[hits.surface]
    i, j = np.floor(u / period), np.floor(v / period)
    mix = np.zeros(u.shape, np.float32)
    chosen = pattern == CHECKER
    mix[chosen] = (i + j)[chosen] % 2
    chosen = pattern == PLANKS
    plank = np.floor(v[chosen] / (8 * period[chosen]) + _hash(i[chosen], i[chosen]))
    mix[chosen] = _hash(i[chosen], plank)
    chosen = pattern == STRIPES
    mix[chosen] = i[chosen] % 2
    chosen = pattern == SPECKLE
    mix[chosen] = _hash(i[chosen], j[chosen])
    # Too far or too slanted to be resolved, a pattern fades into its mean colour instead of flickering.
    slant = -_dot(direction, hits.normal) / np.sqrt(_dot(direction, direction))
    footprint = hits.distance / (np.float32(scene.focal) * np.maximum(slant, np.float32(0.05)))
    sharp = np.clip(np.float32(1.5) - footprint / period, 0, 1)
    mix = np.where(pattern == DADO, v < period, np.float32(0.5) + (mix - np.float32(0.5)) * sharp)
    mix[pattern == PLAIN] = 0
    colours = scene.colours.reshape(-1, 2, 3)[hits.surface]
    first, second = colours[:, 0].T, colours[:, 1].T
    return first + mix.astype(np.float32) * (second - first)


def _hash(i: Floats, j: Floats) -> Floats:
    """Numbers in 0…1 that look random, the same for the same cell."""
    value = np.sin(i * np.float32(12.9898) + j * np.float32(78.233)) * np.float32(437.585)
    fraction: Floats = value - np.floor(value)
    return fraction


def _contrast(light: Floats) -> NDArray[np.bool_]:
    """Pixels that differ clearly in brightness or tint from a neighbour."""
    mapped = np.sqrt(light / max(float(light.mean()), 1e-6))
    rough = np.zeros(light.shape[:2], bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        step = np.abs(mapped[a] - mapped[b]).max(axis=-1) > 0.2
        rough[a] |= step
        rough[b] |= step
    return rough


def _dot(a: Floats, b: Floats) -> Floats:
    product: Floats = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return product


def _rotate(axes: Floats, vectors: Floats) -> Floats:
    return np.stack([_dot(axis[:, None], vectors) for axis in axes])
