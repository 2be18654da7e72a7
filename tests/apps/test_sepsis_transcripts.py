"""What a transcript tells, and what it keeps to itself."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from apps.sepsis.debate import hold_debate, verdict
from apps.sepsis.debaters import LookaheadDebater
from apps.sepsis.transcripts import WARNING, transcribe, write_transcripts
from core.errors import InputError
from simulators.sepsis.features import STATE, action_name
from tests.apps.sepsis_judges import cases, pairwise_judge


def debates(n=6):
    judge, (state, first, second) = pairwise_judge(44), cases(n)
    player = LookaheadDebater(judge)
    state[:, :2] = state[:, :2].sign() / 2
    return judge, hold_debate(state, first, second, player, player)


def test_the_last_leaning_is_the_verdict_and_every_turn_is_told():
    judge, debate = debates()
    for row, transcript in enumerate(transcribe(judge, debate, redact=False)):
        assert [STATE.index(turn.feature) for turn in transcript.turns] == debate.items[row].tolist()
        assert [turn.speaker for turn in transcript.turns] == debate.speaker[row].tolist()
        end = transcript.turns[-1]
        assert end.score_first - end.score_second == pytest.approx(float(verdict(judge, debate, "difference")[row]))
        assert transcript.winner == f"player {1 if verdict(judge, debate)[row] > 0 else 2}"
        assert transcript.first == action_name(int(debate.first[row]))
        assert transcript.opening == 0.5


def test_running_scores_are_those_of_the_evidence_so_far():
    judge, debate = debates(2)
    for row, transcript in enumerate(transcribe(judge, debate, redact=False)):
        shown = torch.zeros(44, dtype=torch.bool)
        for turn, item in zip(transcript.turns, debate.items[row], strict=True):
            shown[item] = True
            assert turn.score_second == pytest.approx(float(judge.score(debate.state[row], shown, debate.second[row])))
            gap = torch.tensor(turn.score_first - turn.score_second)
            assert turn.preference == pytest.approx(float(gap.sigmoid()), abs=1e-6)


def test_values_are_in_units_where_these_are_known():
    judge, debate = debates(3)
    raw = 1000 + torch.arange(3 * 44.0).view(3, 44)
    for row, transcript in enumerate(transcribe(judge, debate, raw=raw, redact=False)):
        assert [turn.value for turn in transcript.turns] == raw[row, debate.items[row]].tolist()
    for row, transcript in enumerate(transcribe(judge, debate, redact=False)):
        assert [turn.value for turn in transcript.turns] == debate.state[row, debate.items[row]].tolist()
        assert {turn.unit for turn in transcript.turns} == {"standard deviations from the training mean"}


def test_redacted_files_hold_no_value_and_no_patient(tmp_path):
    judge, debate = debates()
    raw = 7770.5 + torch.rand(6, 44, generator=torch.Generator().manual_seed(0))
    patient = torch.tensor([8881, 8881, 8882, 8883, 8883, 8881])
    told = transcribe(judge, debate, raw=raw, patient=patient, step=torch.arange(6))
    paths = write_transcripts(tmp_path, told)
    text = "".join(path.read_text() for path in paths)
    assert not re.search(r"\b7,?77[01]\b|\b888[123]\b", text)
    assert [t.patient for t in told] == ["case 1", "case 1", "case 2", "case 3", "case 3", "case 1"]
    assert {turn["value"] for t in json.loads(paths[0].read_text())["debates"] for turn in t["turns"]} == {None}
    assert all(turn.unit == "" for t in told for turn in t.turns)
    open_text = write_transcripts(tmp_path, transcribe(judge, debate, raw=raw, patient=patient, redact=False))[1]
    assert re.search(r"7,77", open_text.read_text())
    assert re.search(r"Patient 8881", open_text.read_text())


def test_redaction_rounds_the_scores_but_not_the_verdict():
    judge, debate = debates()
    told, exact = transcribe(judge, debate), transcribe(judge, debate, redact=False)
    assert [t.winner for t in told] == [t.winner for t in exact]
    for one, other in ((a, b) for t, u in zip(told, exact, strict=True) for a, b in zip(t.turns, u.turns, strict=True)):
        assert one.score_first == round(other.score_first, 1)
        assert one.preference in [n / 20 for n in range(21)]
        assert one.preference == pytest.approx(other.preference, abs=0.0251)


def test_bands_are_one_standard_deviation_and_binary_features_have_two():
    judge, debate = debates(40)
    bands = {"low": set(), "normal": set(), "high": set()}
    for row, transcript in enumerate(transcribe(judge, debate)):
        for turn, item in zip(transcript.turns, debate.items[row], strict=True):
            if turn.feature in ("gender", "mechvent"):
                assert turn.band == ("high" if debate.state[row, item] > 0 else "low")
            else:
                bands[turn.band].add(float(debate.state[row, item]))
    assert max(bands["low"]) < -1 <= min(bands["normal"])
    assert max(bands["normal"]) <= 1 < min(bands["high"])


def test_debates_between_equal_actions_are_left_out(tmp_path):
    judge, debate = debates(4)
    debate.second[1] = debate.first[1]
    told = transcribe(judge, debate, step=torch.arange(4))
    assert [t.step for t in told] == [0, 2, 3]
    debate.second[:] = debate.first
    assert transcribe(judge, debate) == []
    assert "No debates" in write_transcripts(tmp_path, [])[1].read_text()


class Outline(HTMLParser):
    """What a page loads, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded = [], []

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "line", "polyline", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_escapes_names_and_warns(tmp_path):
    judge, debate = debates(3)
    told = transcribe(judge, debate, sides=("clinician", "<policy>"), step=torch.arange(3))
    record, page = write_transcripts(tmp_path / "new", told, "Debates & more")
    outline = Outline()
    outline.feed(page.read_text())
    assert outline.open == []
    assert outline.loaded == []
    assert WARNING in page.read_text()
    assert "<policy>" not in page.read_text()
    assert page.read_text().count("<article>") == 3
    assert json.loads(record.read_text())["warning"] == WARNING


def test_rows_that_do_not_belong_to_the_debates_are_refused():
    judge, debate = debates(3)
    with pytest.raises(InputError, match="step: 2 rows; must be 3"):
        transcribe(judge, debate, step=torch.arange(2))
    with pytest.raises(InputError, match="debate: 44 features; must be 2"):
        transcribe(judge, debate, features=STATE[:2])
