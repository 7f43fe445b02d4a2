"""The command line.

    jaxrobust train CONFIG [--run DIRECTORY] [--flag value ...]
    jaxrobust evaluate RUN [--config FILE] [--suite VERSION] [--geometry NAME --radius R]
    jaxrobust evaluate MODULE:FUNCTION --data NAME [--suite VERSION] --geometry NAME --radius R
    jaxrobust compare RUN...
    jaxrobust data prepare NAME

A configuration's flags are the keyword arguments of its function `experiment`. What a user can put right is told in one
line on standard error with exit code 2.
"""

import argparse
import contextlib
import difflib
import functools
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

USAGE, INTERRUPTED = 2, 130
REDUCTION = ("codec", "rule", "faulty", "hostile", "workers")
SUITES = ("standard", "plus", "rand")
DATA_FORMS = "digits, cifar10:DIRECTORY, or a .npz file with arrays image and label"
GEOMETRIES = ("linf", "l2", "l1", "fourier_linf", "contrast_fourier_linf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: the words after `jaxrobust`; those of the process by default.

    Returns:
      The exit code: 0, or 2 for what a user can put right.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _train:
        return _complain(f"unknown argument {rest[0]}: see jaxrobust {options.name} --help")
    from jaxrobust.train.fit import Diverged

    if not options.traceback:
        _silence_threads(whole_process=arguments is None)

    try:
        return options.command(options, rest)
    except KeyboardInterrupt:
        kept = "the last checkpoint" if options.command is _train else "what --state kept"
        print(f"jaxrobust: interrupted: the same command goes on from {kept}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError, Diverged) as error:
        if options.traceback:
            raise
        return _complain(str(error))


def _silence_threads(*, whole_process: bool) -> None:
    """Keep tracebacks of Orbax's own threads off the terminal: the command's last line tells of a save that failed."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if whole_process:
        # Its coroutines that a failure leaves behind are reported, and ignored, whenever they are collected.
        sys.unraisablehook = lambda _: None


def _complain(message: str) -> int:
    print(f"jaxrobust: {' '.join(message.split())}", file=sys.stderr)
    return USAGE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise SystemExit(_complain(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jaxrobust", description="Training that is robust and cheap, in JAX.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, function: Callable, text: str, **options: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False, **options)
        sub.set_defaults(command=function, name=name)
        sub.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
        return sub

    train = command("train", _train, "train a configuration, or go on with its run", add_help=False)
    train.add_argument(
        "config", type=Path, nargs="?", metavar="CONFIG", help="Python file with a function `experiment`"
    )
    train.add_argument("-h", "--help", action="store_true", help="show this text and the configuration's own flags")
    train.add_argument(
        "--run", type=Path, metavar="DIRECTORY", help="of the run; by default runs/CONFIG[-flag=value...]"
    )
    train.add_argument("--resume-from", type=int, metavar="STEP", help="checkpoint to go on from; by default the last")
    train.add_argument("--tensorboard", action="store_true", help="write TensorBoard events as well")
    train.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, to join several processes")
    train.add_argument("--processes", type=int, metavar="N", help="how many processes join")
    train.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    train.add_argument(
        "--distributed", action="store_true", help="join the processes that a pod or a cluster announces"
    )
    workers = train.add_argument_group("how the workers' gradients become one, in place of the configuration's way")
    workers.add_argument("--codec", metavar="NAME[:BITS[:BUCKET]]", help="how a gradient travels: qsgd_inf:4:8192")
    workers.add_argument("--rule", metavar="NAME", help="how n gradients become one: krum, median, mixtailor, ...")
    workers.add_argument("--faulty", type=int, metavar="F", help="how many workers may be faulty")
    workers.add_argument("--hostile", metavar="NAME", help="what the F faulty workers do, in a drill: sign_flip, ...")
    workers.add_argument("--workers", type=int, metavar="N", help="on fewer devices, each plays several")
    train.set_defaults(show_help=train.print_help)

    evaluate = command("evaluate", _evaluate, "evaluate a run's last checkpoint, or a function of your own")
    evaluate.add_argument(
        "subject", metavar="RUN|MODULE:FUNCTION", help="directory of a run, or a function from images to logits"
    )
    evaluate.add_argument("--config", type=Path, metavar="FILE", help="its configuration; by default configs/NAME")
    evaluate.add_argument("--step", type=int, metavar="STEP", help="checkpoint to evaluate; by default the last")
    evaluate.add_argument("--data", metavar="NAME", help=f"test examples of a function: {DATA_FORMS}")
    evaluate.add_argument(
        "--geometry", choices=GEOMETRIES, help="norm of the attacks, which are then not as configured"
    )
    evaluate.add_argument(
        "--radius", type=float, metavar="R", help="largest norm of a perturbation; images are in [0, 1]"
    )
    evaluate.add_argument("--suite", choices=SUITES, help="of AutoAttack; without it, PGD alone")
    evaluate.add_argument("--attack-steps", type=int, metavar="N", help="steps of PGD; 50 by default")
    evaluate.add_argument("--examples", type=int, metavar="N", help="how many test examples; all by default")
    evaluate.add_argument("--batch-size", type=int, metavar="N", help="images at once; 256 by default")
    evaluate.add_argument("--seed", type=int, metavar="N", help="of the attacks on a function; 0 by default")
    evaluate.add_argument(
        "--state", type=Path, metavar="FILE", help="where a suite keeps how far it is, to go on after a kill"
    )

    compare = command("compare", _compare, "compare runs")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directories of runs")

    data = command("data", _data, "prepare data sets")
    data.add_argument("action", choices=["prepare"], help="prepare: write a TFDS data set to disk")
    data.add_argument("dataset", metavar="NAME", help="name in TensorFlow Datasets, such as cifar10")
    data.add_argument("--data-dir", metavar="DIRECTORY", help="where TFDS keeps its data sets")
    return parser


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from jaxrobust.train.configuration import configure, load_function

    if options.help or options.config is None:
        options.show_help()
        if options.config is not None:
            function, _ = load_function(options.config)
            print(_flags(function, ["--help"], options.config)[1])
        return 0 if options.help else _complain("give the path of a configuration: jaxrobust train CONFIG")
    function, _ = load_function(options.config)
    reduction = {name: getattr(options, name) for name in REDUCTION if getattr(options, name) is not None}
    # A configuration's own flag of the same name is meant.
    for name in [name for name in reduction if name in inspect.signature(function).parameters]:
        rest = [*rest, f"--{name}", str(reduction.pop(name))]
    own = [name for name in REDUCTION if name in inspect.signature(function).parameters]
    if own and reduction:
        theirs, left = (", ".join(f"--{name}" for name in names) for names in (own, reduction))
        return _complain(f"{options.config} reduces gradients by its own {theirs}: leave out {left}")
    given, message = _flags(function, rest, options.config)
    if given is None:
        return _complain(message)
    from jaxrobust.train.reduction_flags import with_reduction

    configuration = with_reduction(configure(options.config, given), reduction)
    name = _run_name(configuration.name, function, configuration.arguments, reduction)
    directory = options.run or Path("runs") / name
    _join(options)
    from jaxrobust.train.fit import fit

    fitted = fit(
        configuration.build(),
        directory,
        configuration=configuration,
        resume_from=options.resume_from,
        tensorboard=options.tensorboard,
    )
    import jax

    if jax.process_index() == 0 and fitted.evaluated:
        print(_result(fitted.evaluated.metrics))
        print(f"report: {directory / 'report.html'}")
    return 0


def _join(options: argparse.Namespace) -> None:
    """Join several processes by JAX's own runtime."""
    import jax

    if options.coordinator is None and not options.distributed:
        if options.processes is not None or options.process is not None:
            raise ValueError("--processes and --process need --coordinator HOST:PORT")
        return
    if options.coordinator is not None and (options.processes is None or options.process is None):
        raise ValueError("--coordinator needs --processes N and --process I as well")
    jax.distributed.initialize(options.coordinator, options.processes, options.process)


def _flags(function: Callable, words: list[str], path: Path) -> tuple[dict[str, Any] | None, str]:
    """A configuration's keyword arguments from the command line; None and a line where they are wrong."""
    import tyro

    @functools.wraps(function)
    def arguments(**given: Any) -> dict[str, Any]:
        return given

    known = [f"--{name.replace('_', '-')}" for name in inspect.signature(function).parameters]
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            given, unknown = tyro.cli(arguments, prog=path.name, args=words, return_unknown_args=True)
    except SystemExit:
        if "--help" in words:
            return None, output.getvalue()
        lines = [line.strip() for line in output.getvalue().splitlines()]
        told = [line for line in lines if line and not line.startswith("--")]
        return None, f"{told[1] if len(told) > 1 else 'wrong arguments'}: see jaxrobust train {path} --help"
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
        remedy = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
        return None, f"{path.name} has no flag {unknown[0]}: {remedy}"
    return given, ""


def _run_name(name: str, function: Callable, arguments: Any, reduction: dict[str, Any]) -> str:
    """A directory's name that differs wherever arguments differ."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()}
    changed = [f"{key}={value}" for key, value in arguments.items() if value != defaults[key]]
    changed += [f"{key}={value}" for key, value in reduction.items()]
    return "-".join([Path(name).stem, *changed]).replace("/", "_")


def _result(metrics: Any) -> str:
    return "\n".join(f"{name}: {100 * value:.2f} %" for name, value in metrics.items())


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    if (options.geometry is None) != (options.radius is None):
        return _complain("give --geometry and --radius together")
    bound = ("suite", "attack_steps", "examples", "batch_size", "state")
    loose = [f"--{name.replace('_', '-')}" for name in bound if getattr(options, name) is not None]
    if options.geometry is None and loose:
        return _complain(f"{' and '.join(loose)} belong to --geometry and --radius: give all of them")
    if options.suite is None and options.state is not None:
        return _complain("--state belongs to --suite: PGD alone keeps nothing")
    if options.suite is not None and options.attack_steps is not None:
        return _complain("--attack-steps belongs to PGD: the attacks of a suite have their own")
    if ":" in options.subject and not Path(options.subject).exists():
        return _evaluate_function(options)
    if options.data is not None or options.seed is not None:
        return _complain("--data and --seed belong to MODULE:FUNCTION, named with a colon: a run has its own")
    from jaxrobust.train.evaluate import evaluate_run

    with _attacks_of(options) as evaluation:
        evaluated, step = evaluate_run(Path(options.subject), options.config, options.step, evaluation)
    print(f"step {step} of {options.subject}")
    print(_result(evaluated.metrics))
    return 0


def _evaluate_function(options: argparse.Namespace) -> int:
    """Evaluate a function of the user's own, found as Python finds modules, from the working directory first."""
    if options.geometry is None or options.data is None:
        return _complain("a function needs --data, --geometry and --radius")
    if options.config is not None or options.step is not None:
        return _complain("--config and --step belong to a run, not to MODULE:FUNCTION")
    from jaxrobust.named_function import check_function, find_function

    logits_fn, source = find_function(options.subject), _test_examples(options.data)
    import jax

    check_function(options.subject, logits_fn, source)
    with _attacks_of(options) as evaluation:
        evaluated = evaluation(jax.random.key(options.seed or 0), logits_fn, source)
    print(_result(evaluated.metrics))
    return 0


def _test_examples(name: str) -> Any:
    """A source in order."""
    from jaxrobust import data

    kind, _, directory = name.partition(":")
    if name == "digits":
        return data.digits().test
    if kind == "cifar10" and directory:
        return data.cifar10(directory).test
    if name.endswith(".npz"):
        return data.npz(name, shuffle=False)
    raise ValueError(f"data must be {DATA_FORMS}, got {name}")


@contextlib.contextmanager
def _attacks_of(options: argparse.Namespace) -> Iterator[Any]:
    """The evaluation that the flags ask for, with its bar on standard error; None for the configured one."""
    if options.geometry is None:
        yield None
        return
    from jaxrobust import attacks, geometry

    sensitive = options.geometry == "contrast_fourier_linf"
    ball = (
        geometry.fourier_linf(geometry.contrast_sensitivity()) if sensitive else getattr(geometry, options.geometry)()
    )
    batch_size = 256 if options.batch_size is None else options.batch_size
    if options.suite is None:
        steps = 50 if options.attack_steps is None else options.attack_steps
        attack = attacks.pgd(ball, options.radius, steps=steps, loss=attacks.losses.margin)
        name = f"{options.geometry} pgd-{steps} at {options.radius:g}"
        yield attacks.accuracy({name: attack}, examples=options.examples, batch_size=batch_size)
        return
    from jaxrobust.report.attack_progress import attack_progress

    suite = attacks.autoattack(ball, options.radius, options.suite)
    with attack_progress() as progress, warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: progress.line(f"note: {message}")
        yield attacks.worst_case(
            suite,
            batch_size=batch_size,
            examples=options.examples,
            file=options.state,
            progress=progress,
            report=lambda found: print(_intervals(found)),
        )


def _intervals(found: Any) -> str:
    """How sure a robust accuracy is, and what it took."""
    low, high = found.interval()
    lines = [f"{len(found.clean)} examples; 95 % interval of robust: {100 * low:.2f} to {100 * high:.2f} %"]
    columns = found.names, found.questions, found.seconds, found.compile_seconds
    for name, asked, took, built in zip(*columns, strict=True):
        lines.append(f"{name}: {asked:,} questions, {took:.1f} s, {built:.1f} s to compile")
    return "\n".join(lines)


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    from jaxrobust.report.compare import compare

    print(compare(options.runs))
    return 0


def _data(options: argparse.Namespace, rest: list[str]) -> int:
    from jaxrobust.data import prepare

    prepare(options.dataset, options.data_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
