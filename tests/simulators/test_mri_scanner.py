"""The scanner: an honest log, luck of one's own, noise of the strength asked for, drops, and nothing else to see."""

import pytest
import torch

from core.errors import InputError
from simulators.mri.acquisition_noise import Imperfections, t2_decay
from simulators.mri.adaptivity import Adaptivity
from simulators.mri.coils import coil_maps, whiten
from simulators.mri.operators import Columns, KSpaceLines, KSpacePoints, MulticoilLines, Pixels
from simulators.mri.scanner import RecordedScanner, Scanner

SHAPE = (2, 32, 32)
PSI = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.5, 0.2], [0.0, 0.2, 0.7]])
OPERATORS = [
    Pixels(SHAPE),
    Columns(SHAPE),
    KSpaceLines(SHAPE),
    KSpacePoints(SHAPE),
    MulticoilLines(SHAPE, maps=coil_maps(3, 32, 32)),
]
EACH = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)


def targets(count=2):
    return Adaptivity().sample(count, seed=0)


def generators(count=2, first=0):
    return [torch.Generator().manual_seed(100 + first + i) for i in range(count)]


@EACH
def test_without_noise_the_samples_are_those_of_the_transform(operator):
    x = targets()
    scanner = Scanner(operator, x)
    everything = operator.samples(operator.forward(x))
    actions = torch.tensor([[3, 17, 5], [30, 0, 9]])
    several = scanner.acquire(actions)
    one = scanner.acquire(actions[:, 0])
    assert several.is_complex() == everything.is_complex()
    for subject in range(2):
        assert torch.equal(several[subject], everything[subject, actions[subject]])
        assert torch.equal(one[subject], everything[subject, actions[subject, 0]])


@EACH
def test_what_was_measured_is_collected(operator):
    x = targets()
    scanner = Scanner(operator, x)
    with pytest.raises(InputError, match="nothing was acquired"):
        scanner.measured()
    scanner.acquire(torch.tensor([[3, 17], [30, 0]]))
    scanner.acquire(torch.tensor([4]), subjects=torch.tensor([1]))
    components, mask = scanner.measured()
    assert mask[0].nonzero().flatten().tolist() == [3, 17]
    assert mask[1].nonzero().flatten().tolist() == [0, 4, 30]
    assert torch.equal(components, mask[..., None] * operator.forward(x))


def test_the_log_holds_every_request():
    scanner = Scanner(KSpaceLines(SHAPE), targets(3), drops={(1, 7): 1})
    scanner.acquire(torch.tensor([16, 16, 16]))
    scanner.acquire(torch.tensor([[1, 2], [7, 3], [9, 16]]))
    scanner.acquire(torch.tensor([7]), subjects=torch.tensor([1]))
    assert scanner.requests == [[16, 1, 2], [16, 7, 3, 7], [16, 9, 16]]
    counts = scanner.counts
    assert counts.sum(1).tolist() == [3, 4, 3]
    assert (counts[1, 7], counts[2, 16], counts[0, 7]) == (2, 2, 0)


def test_a_request_is_not_rewritten_by_who_asked():
    scanner = Scanner(KSpaceLines(SHAPE), targets())
    actions = torch.tensor([[4], [5]])
    scanner.acquire(actions)
    actions.zero_()
    assert scanner.requests == [[4], [5]]


def public(scanner):
    values = [getattr(scanner, name) for name in dir(scanner) if not name.startswith("_")]
    return [v for v in values if isinstance(v, torch.Tensor)] + list(vars(scanner.operator).values())


@EACH
def test_the_target_cannot_be_seen(operator):
    x = targets()
    scanner = Scanner(operator, x)
    scanner.acquire(torch.tensor([3, 4]))
    shapes = {tuple(x.shape), tuple(operator.forward(x).shape), tuple(operator.samples(operator.forward(x)).shape)}
    assert not [v for v in public(scanner) if isinstance(v, torch.Tensor) and tuple(v.shape) in shapes]
    components, _ = scanner.measured()
    components.fill_(7.0)
    assert scanner.measured()[0].max() < 7


FAULTS = {
    "noise": {"sigma_n": 0.05},
    "noise of each": {"sigma_n": torch.tensor([0.05, 0.2, 0.0])},
    "motion": {"imperfections": Imperfections(shift_std=0.5)},
    "all": {
        "sigma_n": 0.05,
        "imperfections": Imperfections(coil_covariance=PSI, shift_std=0.3, echo_spacing=4.0, t2=80.0),
    },
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_batch_equals_its_single_subjects(fault):
    operator, x = OPERATORS[-1], targets(3)
    batch = Scanner(operator, x, generators=generators(3), **fault)
    steps = [torch.tensor([16, 16, 16]), torch.tensor([[3, 4], [5, 6], [3, 31]]), torch.tensor([16, 2, 0])]
    whole = [batch.acquire(step) for step in steps]
    for s in range(3):
        mine = {k: v[s : s + 1] if isinstance(v, torch.Tensor) else v for k, v in fault.items()}
        alone = Scanner(operator, x[s : s + 1], generators=generators(1, first=s), **mine)
        for step, expected in zip(steps, whole, strict=True):
            torch.testing.assert_close(alone.acquire(step[s : s + 1])[0], expected[s], rtol=1e-6, atol=1e-6)


def test_each_request_meets_new_noise_and_a_seed_repeats_it():
    scanner, again = (Scanner(OPERATORS[2], targets(), sigma_n=0.1, generators=generators()) for _ in range(2))
    actions = torch.tensor([16, 3])
    first, second = scanner.acquire(actions), scanner.acquire(actions)
    assert not torch.equal(first, second)
    assert torch.equal(scanner.measured()[0][0, 16], scanner.operator.components(second)[0])
    assert torch.equal(again.acquire(actions), first)


def noise_of(operator, **settings):
    x = targets(1)
    scanner = Scanner(operator, x, generators=generators(1), **settings)
    actions = torch.arange(min(operator.actions, 32)).repeat(1, 200)
    return operator.components(scanner.acquire(actions))[0] - operator.forward(x)[0][actions[0]]


@EACH
def test_noise_has_the_strength_that_was_asked_for(operator):
    noise = noise_of(operator, sigma_n=0.05)
    assert noise.std() == pytest.approx(0.05, rel=0.02)
    assert abs(float(noise.mean())) < 0.002


def test_correlated_coil_noise_has_its_covariance_and_is_whitened():
    operator = OPERATORS[-1]
    noise = operator.samples(noise_of(operator, sigma_n=0.1, imperfections=Imperfections(coil_covariance=PSI)))
    found = torch.cov(noise.movedim(-2, 0).flatten(1))
    torch.testing.assert_close(found.real / 0.02, PSI, rtol=0.03, atol=0.02)
    assert found.imag.abs().max() < 0.001
    white = torch.cov(whiten(noise, PSI, coil_axis=-2).movedim(-2, 0).flatten(1))
    torch.testing.assert_close(white.real / 0.02, torch.eye(3), rtol=0.03, atol=0.02)


@pytest.mark.parametrize("operator", [OPERATORS[2], OPERATORS[4]], ids=["one coil", "three coils"])
def test_lines_decay_along_the_echo_train(operator):
    x = targets()
    lines = torch.arange(32).expand(2, 32)
    ideal = operator.components(Scanner(operator, x).acquire(lines))
    decayed = Scanner(operator, x, imperfections=Imperfections(echo_spacing=5.0, t2=60.0)).acquire(lines)
    torch.testing.assert_close(operator.components(decayed), ideal * t2_decay(torch.arange(32), 16, 5.0, 60.0)[:, None])


def test_motion_keeps_the_modulus_of_a_line_and_its_dc():
    x, operator = targets(), OPERATORS[2]
    lines = torch.arange(32).expand(2, 32)
    ideal = Scanner(operator, x).acquire(lines)
    moved = Scanner(operator, x, imperfections=Imperfections(shift_std=2.0), generators=generators()).acquire(lines)
    torch.testing.assert_close(moved.abs(), ideal.abs(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[:, 16, 16], ideal[:, 16, 16])
    assert (moved - ideal).norm() > 0.1 * ideal.norm()


@EACH
def test_a_dropped_line_is_nan_until_it_comes(operator):
    scanner = Scanner(operator, targets(), drops={(1, 7): 2})
    actions = torch.tensor([[7, 3], [7, 3]])
    first = scanner.acquire(actions)
    assert torch.isnan(torch.view_as_real(first[1, 0]) if first.is_complex() else first[1, 0]).all()
    assert torch.isfinite(first[0]).all()
    assert torch.isfinite(first[1, 1]).all()
    components, mask = scanner.measured()
    assert torch.isfinite(components).all()
    assert mask[:, 7].tolist() == [True, False]
    retry = [scanner.acquire(torch.tensor([7]), subjects=torch.tensor([1])) for _ in range(2)]
    assert not torch.isfinite(retry[0]).any()
    assert torch.isfinite(retry[1]).all()
    components, mask = scanner.measured()
    assert mask[:, 7].tolist() == [True, True]
    assert torch.equal(components[1, 7], operator.forward(targets())[1, 7])
    assert scanner.requests[1] == [7, 3, 7, 7]


def test_drops_can_follow_any_rule():
    seen = []

    def odd(subject, action, attempt):
        seen.append((subject, action, attempt))
        return action % 2 == 1 and attempt == 0

    scanner = Scanner(KSpaceLines(SHAPE), targets(), drops=odd)
    for _ in range(2):
        scanner.acquire(torch.tensor([5, 6]))
    assert seen == [(0, 5, 0), (1, 6, 0), (0, 5, 1), (1, 6, 1)]
    assert scanner.measured()[1][[0, 1], [5, 6]].all()


def test_a_drop_does_not_change_the_luck_of_others():
    x = targets()
    faulty, sound = (
        Scanner(OPERATORS[2], x, sigma_n=0.1, generators=generators(), drops=drops) for drops in ({(0, 4): 1}, None)
    )
    for actions in (torch.tensor([4, 4]), torch.tensor([5, 5])):
        assert torch.equal(faulty.acquire(actions)[1], sound.acquire(actions)[1])


def test_recorded_lines_are_answered_as_they_are_and_others_refused():
    operator, x = OPERATORS[-1], targets()
    components = operator.forward(x)
    available = torch.rand(2, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    scanner = RecordedScanner(operator, torch.where(available[..., None], components, torch.nan), available)
    had = [row.nonzero().flatten() for row in available]
    actions = torch.stack([lines[:8] for lines in had])
    expected = operator.samples(components)
    for s, samples in enumerate(scanner.acquire(actions)):
        assert torch.equal(samples, expected[s, actions[s]])
    absent = int((~available[1]).nonzero()[0])
    with pytest.raises(InputError, match=f"action {absent} of subject 1: was never recorded"):
        scanner.acquire(torch.tensor([int(had[0][0]), absent]))
    assert [len(r) for r in scanner.requests] == [8, 8]
    assert torch.equal(scanner.available, available)


def test_impossible_recordings_are_refused():
    operator = KSpaceLines(SHAPE)
    components, available = operator.forward(targets()), torch.ones(2, 32, dtype=torch.bool)
    with pytest.raises(InputError, match=r"components of shape \(2, 31, 64\)"):
        RecordedScanner(operator, components[:, :31], available[:, :31])
    with pytest.raises(InputError, match="available"):
        RecordedScanner(operator, components, available.float())
    with pytest.raises(InputError, match="something available"):
        RecordedScanner(operator, components, available & torch.tensor([[True], [False]]))
    with pytest.raises(InputError, match="not finite"):
        RecordedScanner(operator, torch.full_like(components, torch.inf), available)


def test_impossible_requests_are_refused_and_not_logged():
    scanner = Scanner(KSpaceLines(SHAPE), targets())
    for actions, message in (
        (torch.tensor([3, 32]), "action 32: must be between 0 and 31"),
        (torch.tensor([-1, 3]), "action -1: must be between 0 and 31"),
        (torch.tensor([1.0, 2.0]), "int64"),
        (torch.tensor([1]), r"must be int64 \(2,\)"),
        (torch.zeros(2, 1, 1, dtype=torch.int64), r"or \(2, n\)"),
    ):
        with pytest.raises(InputError, match=message):
            scanner.acquire(actions)
    for subjects in (torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([-1, 0]), torch.tensor([[0], [1]])):
        with pytest.raises(InputError, match="subjects"):
            scanner.acquire(torch.tensor([1, 1]), subjects=subjects)
    assert scanner.requests == [[], []]
    assert not scanner.counts.any()


def test_impossible_scanners_are_refused():
    lines, x = KSpaceLines(SHAPE), targets()
    for operator, target, settings, message in (
        (lines, x[:, :1], {}, r"target of shape \(2, 1, 32, 32\)"),
        (lines, x[0], {}, "target of shape"),
        (lines, x * torch.nan, {}, "not finite"),
        (lines, x, {"sigma_n": -0.1}, "sigma_n"),
        (lines, x, {"sigma_n": torch.ones(3)}, "sigma_n"),
        (lines, x, {"sigma_n": 0.1}, "generators: none given"),
        (lines, x, {"sigma_n": 0.1, "generators": generators(1)}, "generators: 1 given"),
        (lines, x, {"imperfections": Imperfections(shift_std=1.0)}, "generators"),
        (lines, x, {"imperfections": Imperfections(coil_covariance=PSI)}, "coil_covariance of 3 coils"),
        (OPERATORS[-1], x, {"imperfections": Imperfections(coil_covariance=torch.eye(2))}, "the operator has 3"),
        (Pixels(SHAPE), x, {"imperfections": Imperfections(echo_spacing=1.0, t2=9.0)}, "operator is Pixels"),
    ):
        with pytest.raises(InputError, match=message):
            Scanner(operator, target, **settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_scanner_on_the_device_answers_as_on_the_host():
    x = targets()
    maps = coil_maps(3, 32, 32)
    actions = torch.tensor([[3, 16], [9, 31]])
    host = Scanner(MulticoilLines(SHAPE, maps=maps), x).acquire(actions)
    device = Scanner(
        MulticoilLines(SHAPE, maps=maps.cuda()),
        x.cuda(),
        sigma_n=1e-9,
        imperfections=Imperfections(coil_covariance=PSI, shift_std=1e-9),
        generators=[torch.Generator("cuda").manual_seed(i) for i in range(2)],
        drops={(0, 5): 1},
    ).acquire(actions.cuda())
    torch.testing.assert_close(device.cpu(), host, atol=1e-4, rtol=1e-4)
