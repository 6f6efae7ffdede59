"""The subcommands of `fedmtl`, one file each, loaded only when called."""

COMMANDS = {
    "fit": "train one unified model across clients, from a configuration file",
    "evaluate": "measure a run's model again, on every task",
    "data": "check and preview data sets, where to get them, and who has what in a federation",
    "compare": "runs side by side: a table in the terminal, a page with charts, LaTeX, CSV",
    "sweep": "many runs from one file in W&B's sweep format, here and without an account",
    "predict": "every task of a run's unified model on pictures of your own",
    "export": "a run's encoder for timm, its unified model for torch.export and ONNX, with a model card",
    "dashboard": "a W&B workspace for the runs of a project",
    "list": "the methods, backbones, tasks, data sets and experiments there are",
    "init": "lay down a small experiment of your own",
    "doctor": "look over this installation: versions, devices, data, write access, W&B",
    "completion": "print a script that completes fedmtl's words in bash, zsh or tcsh",
}
