from __future__ import annotations

import errno
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer

import apps.cli
from core.configs import ROOT
from core.errors import NotWritten
from core.study import StudyError, add_study_commands
from tests.core.toy_study import ToyStudy

CONFIG = "study: toy\nseeds: 1\n"


@pytest.fixture
def szilard(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """The command with a toy application: arguments to exit code, stdout, stderr."""
    toy = types.ModuleType("apps.toy.cli")
    toy.app = typer.Typer(no_args_is_help=True, help="A toy.")  # type: ignore[attr-defined]
    add_study_commands(toy.app, ToyStudy)  # type: ignore[attr-defined]

    @toy.app.command()  # type: ignore[attr-defined]
    def fail(how: str) -> None:
        raise {
            "interrupt": KeyboardInterrupt(),
            "study": StudyError("1 of 2 runs failed"),
            "disk": NotWritten(errno.ENOSPC, "No space left on device", "out/a.json"),
            "bug": ZeroDivisionError(),
        }[how]

    study = types.ModuleType("apps.toy.study")
    study.ToyStudy = ToyStudy  # type: ignore[attr-defined]
    for module in (types.ModuleType("apps.toy"), toy, study):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(apps.cli.APPS, "toy", apps.cli.App("A toy.", "ToyStudy"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("toy.yaml").write_text(CONFIG)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["szilard", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            apps.cli.main()
        captured = capfd.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return call


@pytest.mark.parametrize("app", list(apps.cli.APPS))
def test_help_and_schema_of_an_application_need_none_of_its_extras(app: str) -> None:
    absent = [
        "sklearn",
        "fastmri",
        "torchvision",
        "diffusers",
        "ismrmrd",
        "nibabel",
        "nilearn",
        "skimage",
        "pywt",
        "polars",
        "pyarrow",
        "fastapi",
        "uvicorn",
        "vowpalwabbit",
        "lightgbm",
        "ray",
        "jax_cfd",
        "jax",
        "cma",
        "zarr",
        "pettingzoo",
        "dysts",
        "statsmodels",
        "xgboost",
        "darts",
        "statsforecast",
        "minari",
        "shap",
        "lime",
        "pymdp",
        "equinox",
        "av",
        "cv2",
        "transformers",
    ]
    code = f"import sys\nsys.modules |= dict.fromkeys({absent})\nfrom apps.cli import main\nmain()"
    for arguments in (["schema", app], [app, "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bogus"], "bogus"),
        (["toy", "bogus"], "bogus"),
        (["toy", "run"], "config"),
        (["toy", "run", "toy.yaml", "--bogus"], "--bogus"),
        (["toy", "run", "toy.yaml", "--device", "xpu"], "--device"),
        (["toy", "run", "toy.yaml", "--workers", "few"], "--workers"),
    ],
)
def test_a_mistake_in_the_command_line_is_told_in_one_line(szilard, arguments: list[str], named: str) -> None:
    code, out, err = szilard(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("szilard: error: ")
    assert len(err.splitlines()) == 1
    assert named in err


def test_without_arguments_help_is_all_that_is_printed(szilard) -> None:
    code, out, err = szilard("toy")
    assert "report" in out
    assert (code, err) == (2, "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"]])
def test_help_version_and_list_import_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "numpy", "xarray", "matplotlib", "core.study"}
    if arguments != ["list"]:  # Typer brings pydantic with it as soon as it has options to convert
        heavy.add("pydantic")
    code = (
        "import sys, apps.cli\n"
        f"sys.argv = ['szilard', *{arguments}]\n"
        "try: apps.cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print(*({heavy} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == ""


def test_help_names_the_applications(szilard) -> None:
    code, out, _ = szilard("--help")
    assert code == 0
    assert "fishery" in out
    assert "toy" in out
    code, out, _ = szilard("toy", "--help")
    assert code == 0
    assert "report" in out
    assert "--install-completion" not in out
    for verb in ("run", "report"):
        assert f"Example: szilard toy {verb}" in szilard("toy", verb, "--help")[1]


def test_run_and_report_through_the_command_line(szilard) -> None:
    code, out, err = szilard("toy", "run", "toy.yaml", "--out", "out", "--set", "steps=3", "--workers", "0")
    assert code == 0
    assert out.splitlines()[-1] == "out/report.html"
    assert "finished walk 0" in err
    assert json.loads(Path("out/summary.json").read_text())["study"] == "toy"
    first = Path("out/report.html").read_text()
    code, out, err = szilard("toy", "report", "out")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "out/report.html"
    assert len(Path("out/report.html").read_text()) == pytest.approx(len(first), rel=0.01)


@pytest.mark.parametrize(("threshold", "code"), [("-1e6", 0), ("1e6", 1), ("null", 1)])
def test_require_claims_decides_the_exit_code(szilard, threshold: str, code: int) -> None:
    arguments = ["toy", "run", "toy.yaml", "--out", "out", "--workers", "0", "--set", f"threshold={threshold}"]
    assert szilard(*arguments, "--require-claims")[0] == code
    assert szilard(*arguments)[0] == 0
    assert szilard("toy", "report", "out", "--require-claims")[0] == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nope.yaml"), "nope.yaml: no such file; packaged studies of toy: none"),
        (("run", "toy.yaml", "--set", "seeds=0"), "--set seeds=0: seeds = 0: must be greater than or equal to 1"),
        (("run", "toy.yaml", "--workers=-1"), "--workers -1: must be at least 0"),
        (("run", "toy.yaml", "--out", "toy.yaml"), "toy.yaml: not a folder"),
        (("report", "."), ".: holds no study"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(szilard, arguments: tuple[str, ...], message: str) -> None:
    assert szilard("toy", *arguments) == (2, "", f"szilard: error: {message}\n")
    assert [path.name for path in Path().iterdir()] == ["toy.yaml"]


def test_usage_errors_exit_with_2_and_name_the_choices(szilard) -> None:
    code, _, err = szilard("toy", "run", "toy.yaml", "--device", "tpu")
    assert code == 2
    assert "auto" in err
    code, _, err = szilard("fisheri")
    assert code == 2
    assert "'fishery'" in err


def test_exit_codes_of_what_happens_inside(szilard, monkeypatch: pytest.MonkeyPatch) -> None:
    assert szilard("toy", "fail", "study") == (1, "", "szilard: error: 1 of 2 runs failed\n")
    assert szilard("toy", "fail", "disk") == (2, "", "szilard: error: out/a.json: no space left on device\n")
    assert szilard("toy", "fail", "interrupt")[0] == 130
    monkeypatch.setattr(sys, "argv", ["szilard", "toy", "fail", "bug"])
    with pytest.raises(ZeroDivisionError):
        apps.cli.main()


def test_a_failed_run_exits_with_1(szilard) -> None:
    code, out, err = szilard("toy", "run", "toy.yaml", "--out", "out", "--workers", "0", "--set", "fault=raise")
    assert (code, out) == (1, "")
    assert "szilard: error: 1 of 1 runs failed\nwalk 0 [" in err
    assert "ValueError: seed 0 is unlucky" in err
    assert not Path("out/summary.json").exists()


def test_schema_describes_every_key(szilard) -> None:
    code, out, _ = szilard("schema", "toy")
    schema = json.loads(out)
    assert code == 0
    assert schema["properties"]["seeds"]["minimum"] == 1
    assert schema["properties"]["study"]["description"] == "Name of the study."
    assert schema["additionalProperties"] is False
    assert szilard("schema", "chess")[2].startswith("szilard: error: chess: no such application; there are: fishery")


def test_list_shows_each_packaged_study_with_what_it_takes(szilard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.configs.ROOT", Path().resolve())
    folder = Path("configs/toy")
    folder.mkdir(parents=True)
    (folder / "quick.yaml").write_text("study: quick\ntakes: 4 min on 2 CPU cores\ndescription: Walks [fast].\n")
    code, out, _ = szilard("list")
    assert code == 0
    line = next(line for line in out.splitlines() if "quick" in line)
    assert "4 min on 2 CPU cores" in line
    assert "Walks [fast]." in line
    assert "ray" in out.split("extras")[1]


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m apps.cli list | true"
    process = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert process.stderr == ""


def test_completion_offers_applications_and_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"_SZILARD_COMPLETE": "complete_bash", "COMP_WORDS": "szilard fi", "COMP_CWORD": "1", "PATH": ""}
    code = "import sys, apps.cli; sys.argv = ['szilard']; apps.cli.main()"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert process.stdout.split() == ["fishery"]
