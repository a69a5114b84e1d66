"""`python -m tools.gpu_check prepare | run | rehearse | show | publish`: see docs/gpu-check.md."""

import argparse
import json
import sys
from pathlib import Path

from tools.gpu_check import layout, report, steps
from tools.gpu_check.environment import NotReadyError


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="fetch what is carried, and check it")
    prepare.add_argument("--python", default=layout.MACHINE_PYTHON, help="the machine's, 3.12")
    prepare.add_argument("--data", type=Path, metavar="DIR", help="holds cifar10.tar and spill.tar")
    run = commands.add_parser("run", help="one step, on the machine with the GPU")
    run.add_argument("step", choices=(*steps.STEPS, "install"))
    run.add_argument("out", type=Path, metavar="OUT", help="STEP.json and STEP.log go there")
    run.add_argument(
        "--seconds", type=float, default=steps.LONGEST_S, help="the step ends by then, 225"
    )
    rehearse = commands.add_parser("rehearse", help="the same on the CPU, without a network")
    rehearse.add_argument("--data", type=Path, metavar="DIR", help="as for prepare")
    rehearse.add_argument("--steps", nargs="+", choices=steps.STEPS, default=list(steps.STEPS))
    show = commands.add_parser("show", help="print the results of a folder as rows of tables")
    show.add_argument("folder", type=Path)
    publish = commands.add_parser("publish", help="copy the results to benchmarks/results/")
    publish.add_argument("folder", type=Path)
    return parser.parse_args()


def _prepare(arguments: argparse.Namespace) -> int:
    # Not at the top: the machine with the GPU need not have what this imports.
    from tools.gpu_check import prepare

    return prepare.main(arguments.python, arguments.data)


def _rehearse(arguments: argparse.Namespace) -> int:
    from tools.gpu_check import rehearse

    return rehearse.main(arguments.data, arguments.steps)


def _run(arguments: argparse.Namespace) -> int:
    try:
        if arguments.step == "install":
            from tools.gpu_check import environment

            environment.make()
            return 0
        return steps.run(arguments.step, arguments.out, seconds=arguments.seconds)
    except NotReadyError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _show(arguments: argparse.Namespace) -> int:
    for path in sorted(arguments.folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        sys.stdout.write("\n".join(report.lines(document)) + "\n")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from tools.gpu_check.publish import PublishError, publish

    try:
        paths = publish(arguments.folder)
    except PublishError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{layout.relative(path)}\n" for path in paths))
    return 0


_COMMANDS = {
    "prepare": _prepare,
    "run": _run,
    "rehearse": _rehearse,
    "show": _show,
    "publish": _publish,
}

if __name__ == "__main__":
    chosen = _arguments()
    sys.exit(_COMMANDS[chosen.command](chosen))
