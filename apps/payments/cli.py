"""The verbs of ``szilard payments``."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.progress import Progress

from apps.payments.exploration import Exploration
from apps.payments.oracles import ImbalanceSettings, OracleSettings
from apps.payments.scenario import Arm, Scenario
from apps.payments.study import PaymentsStudy
from core.errors import InputError
from core.study import add_study_commands
from core.study.commands import Device, DeviceOption, Engine, SeedOption, Set
from core.study.loading import from_options
from core.study.runner import resolve_device
from core.study.terminal import print_summary
from simulators.payments.context import Sizes

app = typer.Typer(no_args_is_help=True, help="Exploration for payment decisions, learned and proven on logs.")
add_study_commands(app, PaymentsStudy)

LONGEST_HORIZON = 36_525
"""Days: a century."""


class RuleName(StrEnum):
    """A rule of exploration."""

    uniform = "uniform"
    greedy = "greedy"
    epsilon = "epsilon"
    epsilon_slice = "epsilon_slice"
    igw = "igw"
    igw_elim = "igw_elim"
    grouped_igw = "grouped_igw"
    softmax = "softmax"
    thompson_bootstrap = "thompson_bootstrap"


class OracleName(StrEnum):
    """A regression."""

    factored = "factored"
    gbdt = "gbdt"
    mlp = "mlp"
    vw = "vw"
    hopfield = "hopfield"
    homeostatic = "homeostatic"


class LogFormat(StrEnum):
    """What a log is."""

    payments = "payments"
    open_bandit = "open_bandit"


class Durability(StrEnum):
    """When a decision is on disk."""

    batch = "batch"
    always = "always"
    off = "off"


JoinedArgument = Annotated[Path, typer.Argument(metavar="JOINED", help="Folder that join has written, or its file.")]
ActionsOption = Annotated[
    int | None, typer.Option(help="Number of actions, where the log does not say it.", min=1, max=1024)
]
RuleOption = Annotated[RuleName, typer.Option("--rule", help="Rule of exploration.")]
OracleOption = Annotated[OracleName, typer.Option("--oracle", help="Regression.")]
GammaOption = Annotated[float | None, typer.Option(help="Of the IGW rules.  \\[default: 1000]")]
EpsilonOption = Annotated[float | None, typer.Option(help="Of the epsilon rules.  \\[default: 0.05]")]
FloorOption = Annotated[float | None, typer.Option(help="Share of uniform decisions mixed into any rule.")]


def _exploration(verb: str, rule: str, gamma: float | None, epsilon: float | None, floor: float | None) -> Exploration:
    numbers = {"gamma": gamma, "epsilon": epsilon, "floor": floor}
    given = {name: value for name, value in numbers.items() if value is not None}
    return from_options(Exploration, {"rule": str(rule)} | given, verb)


def _oracle(kind: str, settings: list[str] | None) -> OracleSettings:
    adapter: TypeAdapter[Any] = TypeAdapter(OracleSettings)
    default = adapter.validate_python({"kind": str(kind)})
    found: OracleSettings = from_options(type(default), {"kind": str(kind)}, "train", settings or ())
    return found


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the log; must be new.")],
    world: Annotated[int, typer.Option(help="Seed of the world.", min=0, max=2**31 - 1)] = 0,
    generations: Annotated[int, typer.Option(help="Policies deployed one after the other.", min=2, max=10_000)] = 3,
    payments: Annotated[int, typer.Option(help="Payments a generation.", min=100)] = 15_000,
    window: Annotated[int, typer.Option(help="Generations that the oracle learns from.", min=1)] = 1,
    rule: RuleOption = RuleName.igw,
    gamma: GammaOption = None,
    epsilon: EpsilonOption = None,
    floor: FloorOption = None,
    overrides: Set = None,
) -> None:
    """Write the log that a service would leave on simulated payments, with the policies and the truth beside it.

    --set changes the world, such as --set delay.median_hours=6 or --set drift.kind=abrupt.

    Example: szilard payments simulate --out logs/demo --generations 3 --rule igw --gamma 2000
    """
    from apps.payments.simulated_log import simulate_log

    values = {"name": "simulated", "generations": generations, "payments": payments}
    scenario = from_options(Scenario, values, "simulate", overrides or ())
    exploration = _exploration("simulate", rule, gamma, epsilon, floor)
    arm = from_options(Arm, {"name": str(rule), "exploration": exploration, "window": window}, "simulate")
    with Progress(transient=True) as progress:
        bar = progress.add_task("simulating", total=1.0)
        found = simulate_log(scenario, arm, world, out, lambda done, what: progress.update(bar, completed=done))
    print(f"{found.decisions} decisions, {found.rewards} rewards")
    for generation, value in enumerate(found.values):
        print(f"generation {generation}: true approval rate {100 * value:.2f} %")
    print(f"policy that was learned last: {found.next_policy}")
    print(out)


@app.command()
def join(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Folder that serve or simulate has written.")],
    out: Annotated[Path, typer.Option(help="Folder of the joined log.")],
    horizon_days: Annotated[float, typer.Option(help="Within which a reward counts.", min=0.0)] = 30.0,
    as_of: Annotated[
        str | None, typer.Option(help="Moment (ISO, with time zone) that tells pending from censored decisions.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Refuse bad rows and files instead of setting them apart.")] = False,
    net_value: Annotated[bool, typer.Option(help="Rewards are amounts, not approvals in [0, 1].")] = False,
) -> None:
    """Join rewards to their decisions, each at most once; the same rows give the same bytes, in whatever files.

    Example: szilard payments join logs/demo --out logs/joined
    """
    from apps.payments.log import join_log

    if out.is_file():
        raise InputError(f"--out {out}: is a file, not a folder")
    try:
        moment = None if as_of is None else datetime.fromisoformat(as_of)
    except ValueError:
        raise InputError(f"--as-of {as_of}: must be an ISO time with its zone, such as 2025-03-01T00:00Z") from None
    if not 0 < horizon_days <= LONGEST_HORIZON:
        raise InputError(f"--horizon-days {horizon_days}: must be greater than 0 and at most {LONGEST_HORIZON}")
    report = join_log(log, out, horizon=timedelta(days=horizon_days), as_of=moment, strict=strict, net_value=net_value)
    _print_join(report, out)


def _print_join(report: Any, out: Path) -> None:
    print(f"{report.decisions} decisions: {report.matched} with a reward, {report.pending} pending, ", end="")
    print(f"{report.censored} censored, {sum(report.refused_decisions.values())} set apart")
    print(f"{report.rewards} rewards: {sum(report.refused_rewards.values())} set apart")
    for name in ("refused_decisions", "refused_rewards"):
        for reason, count in getattr(report, name).items():
            print(f"  {name.removeprefix('refused_')}: {count} x {reason}")
    for line in report.ignored:
        print(f"  ignored: {line}")
    print(out)


@app.command()
def train(
    joined: JoinedArgument,
    out: Annotated[Path, typer.Option(help="Folder of the policy.")],
    rule: RuleOption = RuleName.igw,
    gamma: GammaOption = None,
    epsilon: EpsilonOption = None,
    floor: FloorOption = None,
    oracle: OracleOption = OracleName.factored,
    settings: Annotated[
        list[str] | None, typer.Option("--oracle-set", metavar="KEY=VALUE", help="A setting of the regression.")
    ] = None,
    imbalance: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="About rare declines, such as method=downsample; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the policy.  \\[default: the folder's]")] = None,
    window: Annotated[int | None, typer.Option(help="Learn from the last so many generations.", min=1)] = None,
    rows: Annotated[int, typer.Option(help="Learn from about so many rows.", min=100)] = 1_000_000,
    hold_out: Annotated[
        bool,
        typer.Option("--hold-out/--all-rows", help="Leave a third of the transactions out, to judge the policy on."),
    ] = True,
    actions: ActionsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = Device.auto,
) -> None:
    """Learn the next policy from a joined log.

    Example: szilard payments train logs/joined --out policies/next --rule igw --gamma 2000
    """
    import torch

    from apps.payments.evaluation.evidence import PaymentsLog
    from apps.payments.training import train_policy

    policy, learned = train_policy(
        PaymentsLog.open(joined, actions),
        out,
        _exploration("train", rule, gamma, epsilon, floor),
        _oracle(oracle, settings),
        imbalance=from_options(ImbalanceSettings, {}, "train", imbalance or ()),
        policy_id=name,
        rows=rows,
        window=window,
        hold_out=hold_out,
        seed=seed,
        device=resolve_device(device, torch.cuda.is_available()),
    )
    print(f"policy {policy.policy_id}, generation {policy.generation}, learned from {learned} rows")
    print(out)


@app.command()
def evaluate(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A joined log, or an Open Bandit campaign.")],
    policy: Annotated[
        list[str],
        typer.Option(
            "--policy",
            metavar="[NAME=]SOURCE",
            help="A policy's folder, or uniform; of an Open Bandit log, the log whose item frequencies are the policy. "
            "May be repeated.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/evaluation"),
    format: Annotated[LogFormat, typer.Option("--format", help="Of the log.")] = LogFormat.payments,
    baseline: Annotated[
        str, typer.Option(help="Compare with the policy of this name instead of the one that logged.")
    ] = "logged",
    segment: Annotated[str | None, typer.Option(help="Category whose levels are evaluated by themselves.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as replicates=0 or cluster=merchant."),
    ] = None,
    estimate_propensities: Annotated[
        bool, typer.Option(help="Of a log that has none: a model of the logged policy, with which nothing is decided.")
    ] = False,
    actions: ActionsOption = None,
    engine: Annotated[Engine, typer.Option(help="This process, or a Ray cluster (Ray Data).")] = Engine.local,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.", metavar="HOST:PORT")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Keep a finished evaluation, or start anew.")] = True,
    require_claims: Annotated[bool, typer.Option(help="Exit with 1 unless every policy is worth promoting.")] = False,
) -> None:
    """Evaluate policies off-line on a log, with every estimator, intervals, diagnostics and a page to read.

    Example: szilard payments evaluate logs/joined --policy next=policies/next --segment issuer --out runs/next
    """
    from apps.payments.evaluation.runs import Candidate, Estimation
    from apps.payments.evaluation.study import EvaluationStudy, evaluation_of

    candidates = [from_options(Candidate, _candidate(text), "evaluate") for text in policy]
    given: dict[str, Any] = {"estimate_propensities": estimate_propensities}
    given |= {} if segment is None else {"segment": segment}
    estimation = from_options(Estimation, given, "evaluate", overrides or ())
    study = evaluation_of(log, candidates, format.value, estimation, actions, baseline)
    workers = 0 if engine is Engine.local else None
    summary = study.run(out, device="cpu", engine=engine, address=address, workers=workers, fresh=not resume)
    print_summary(summary, EvaluationStudy.headline)
    if require_claims and not summary.all_hold:
        raise typer.Exit(1)


def _candidate(text: str) -> dict[str, str]:
    name, equals, source = text.partition("=")
    if not equals:
        source, name = text, Path(text).name or "policy"
    return {"name": name, "source": source}


@app.command()
def serve(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="Folder of a policy, as train writes it.")],
    log: Annotated[Path, typer.Option(help="Folder of the log; what is there already is gone on with.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than the loopback lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8765,
    fsync: Annotated[Durability, typer.Option(help="When an answer waits for the disk.")] = Durability.batch,
    keep_probabilities: Annotated[bool, typer.Option(help="Log the probabilities of all actions.")] = False,
) -> None:
    """Serve decisions over HTTP: POST /v1/decide and /v1/reward, GET /healthz and /metrics.

    Example: szilard payments serve policies/next --log logs/live
    """
    from apps.payments.service import serve as serve_policy

    serve_policy(policy, log, host=host, port=port, fsync=fsync.value, keep_probabilities=keep_probabilities)


@app.command("import-dsjson")
def import_dsjson(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Decisions of Vowpal Wabbit, one JSON object a line.")],
    out: Annotated[Path, typer.Option(help="Folder of the joined log.")],
    actions: Annotated[int, typer.Option(help="Number of actions.", min=1, max=1024)] = Sizes().actions,
    strict: Annotated[bool, typer.Option(help="Refuse bad lines instead of setting them apart.")] = False,
    net_value: Annotated[bool, typer.Option(help="Rewards are amounts, not approvals in [0, 1].")] = False,
) -> None:
    """Turn a DSJSON file into a joined log.

    Example: szilard payments import-dsjson decisions.json --out logs/joined --actions 32
    """
    from apps.payments.log import join_dsjson

    _print_join(join_dsjson(file, out, actions=actions, strict=strict, net_value=net_value), out)


@app.command("export-dsjson")
def export_dsjson(
    joined: JoinedArgument,
    out: Annotated[Path, typer.Option(help="File to write.")],
    actions: ActionsOption = None,
) -> None:
    """Write the rows with a reward of a joined log as DSJSON, for Vowpal Wabbit.

    Example: szilard payments export-dsjson logs/joined --out decisions.json
    """
    from apps.payments.evaluation.evidence import PaymentsLog
    from apps.payments.log import write_dsjson

    log = PaymentsLog.open(joined, actions)
    print(f"{write_dsjson(out, log.tables(), log.actions)} lines")
    print(out)


@app.command()
def estimate(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a packaged study.")],
    overrides: Set = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Say what a study costs on this machine before it is started: time by arm, and memory.

    Example: szilard payments estimate paper
    """
    import torch

    from apps.payments.cost import print_cost

    print_cost(PaymentsStudy.load(config, overrides or ()), resolve_device(device, torch.cuda.is_available()))
