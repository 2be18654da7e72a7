import math

import pytest
import torch

from simulators.lips import renderer
from simulators.lips.landmarks import INNER, OUTER, POINTS, landmarks
from simulators.lips.renderer import MEMORY, autoregressive, render
from simulators.lips.speakers import Appearance, Speakers
from simulators.lips.visemes import TARGETS, VISEMES

FAULTS = ("ROTATION", "SHIFT", "DRIFT", "LIGHT", "FLICKER", "BLUR", "HIDDEN")


@pytest.fixture
def still(monkeypatch):
    """A camera without faults."""
    for name in FAULTS:
        monkeypatch.setattr(renderer, name, 0.0)


def face(n=1, scale=1.0, skin=0.7, lip=0.45):
    return Appearance(*(torch.full((n,), x, dtype=torch.float64) for x in (0.14, 0.2, skin, lip, scale)))


def shapes(*names):
    """``(n, 1, 6)``."""
    return torch.tensor([TARGETS[VISEMES.index(name)] for name in names], dtype=torch.float64)[:, None]


def picture(z, look=None, size=(64, 96), seed=0, noise=0.0):
    look = face(len(z)) if look is None else look
    return render(z, look, *size, torch.Generator().manual_seed(seed), noise)


def by_the_formulas(z, x, y, upper=0.14, lower=0.2, skin=0.7, lip=0.45):
    """One pixel of a mouth without pose, light and faults."""

    def soft(u):
        return 1 / (1 + math.exp(-u / 0.035))

    a, w, p, t, f, g = z
    half = 0.8 * (1 + 0.25 * w - 0.3 * p)
    h = 0.02 + 0.62 * a * (1 - 0.25 * p)
    u = min(max(x / half, -1), 1)
    q = max(1 - u * u, 1e-4)
    inner, outer = q**0.7, q**0.5
    top, bottom = -0.45 * h * inner, 0.55 * h * inner - 0.08 * f * inner
    full = (1 + 0.5 * p) * (1 - 0.35 * max(w, 0))
    outer_top = top - upper * full * outer * (1 - 0.25 * math.exp(-((x / 0.12) ** 2)))
    outer_bottom = bottom + lower * full * (1 - 0.6 * f) * outer
    side = soft(half - abs(x))
    lips = soft(y - outer_top) * soft(outer_bottom - y) * side
    opening = soft(y - top) * soft(bottom - y) * side
    inside = 0.1 + 0.68 * max(t, 0.8 * f) * soft(top + 0.17 - y)
    tongue = 1 / (1 + math.exp(-(1 - (x / (0.45 * half)) ** 2 - ((y - bottom + 0.08) / 0.15) ** 2) / 0.3))
    inside += (0.45 - inside) * g * tongue
    value = skin + (lip - skin) * lips
    return value + (inside - value) * opening


@pytest.mark.usefixtures("still")
def test_pictures_are_those_of_the_formulas():
    z = shapes(*VISEMES)
    found = picture(z, size=(16, 24))
    for b in range(len(z)):
        expected = [
            [by_the_formulas(z[b, 0].tolist(), (j + 0.5 - 12) / 8, (i + 0.5 - 8) / 8) for j in range(24)]
            for i in range(16)
        ]
        torch.testing.assert_close(found[b, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("still")
def test_what_a_mouth_shape_does_to_the_picture():
    rest, open_, round_, teeth, tongue = picture(shapes("SIL", "AA", "UW", "SZ", "TH"))[:, 0]
    assert open_[32, 48] < 0.2 < rest[10, 48]
    dark = [int((x < 0.6).any(0).sum()) for x in (rest, round_)]
    assert dark[1] < 0.75 * dark[0]
    assert teeth[30:36, 48].max() > open_[30:36, 48].max() + 0.2
    assert tongue[30:40, 48].min() > open_[30:40, 48].min()


def test_pictures_are_grey_levels_and_follow_the_seed():
    look = Speakers.draw(30, 0).appearance
    z = torch.tensor(TARGETS)[torch.randint(22, (30, 12), generator=torch.Generator().manual_seed(0))]
    found = picture(z, look, (32, 48), noise=0.03)
    assert found.shape == (30, 12, 32, 48)
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, picture(z, look, (32, 48), noise=0.03))
    assert not torch.equal(found, picture(z, look, (32, 48), seed=1, noise=0.03))


def test_clips_drawn_together_are_those_drawn_in_pieces(monkeypatch):
    z, look = shapes(*VISEMES[:9]).expand(9, 6, 6), face(9)
    together = picture(z, look)
    monkeypatch.setattr(renderer, "_PIECE", {"cuda": 2 * 6 * 64 * 96, "cpu": 2 * 6 * 64 * 96})
    torch.testing.assert_close(picture(z, look), together, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("still")
def test_pixels_are_square_in_wide_pictures():
    """A wider picture shows more of the face and the same mouth."""
    z = shapes("IY", "UW")
    torch.testing.assert_close(picture(z, size=(32, 64))[..., 8:56], picture(z, size=(32, 48)), atol=1e-12, rtol=0)


def test_hands_are_rectangles_for_a_while(monkeypatch):
    z = shapes("SIL").expand(60, 30, 6)
    monkeypatch.setattr(renderer, "HIDDEN", 1.0)
    covered = picture(z, face(60), (40, 60))
    monkeypatch.setattr(renderer, "HIDDEN", 0.0)
    free = picture(z, face(60), (40, 60))
    monkeypatch.setattr(renderer, "HIDDEN", 0.1)
    some = picture(z, face(60), (40, 60))
    hidden = covered != free
    time, rows, columns = hidden.any(3).any(2), hidden.any(3).any(1), hidden.any(2).any(1)
    box = time[:, :, None, None] & rows[:, None, :, None] & columns[:, None, None]
    assert (hidden == box).float().mean() > 0.999  # a hand may be as grey as the pixel that it hides
    for found, low, high in ((time, 5, 25), (rows, 7, 21), (columns, 11, 31)):
        assert found.sum(1).min() >= low
        assert found.sum(1).max() <= high
    assert 0 < (some != free).flatten(1).any(1).sum() < 20


@pytest.mark.usefixtures("still")
def test_blur_keeps_the_mean_and_takes_away_edges(monkeypatch):
    z = shapes("AA").expand(1, 3, 6)
    sharp = picture(z)
    monkeypatch.setattr(renderer, "BLUR", 4.0)
    soft = picture(z)
    assert soft.mean() == pytest.approx(float(sharp.mean()), abs=2e-3)
    assert soft.diff(dim=3).abs().max() < sharp.diff(dim=3).abs().max()


def test_slow_faults_are_stationary_and_have_their_memory():
    x = autoregressive(20000, 30, torch.zeros((), dtype=torch.float64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.var(0), torch.ones(30, dtype=torch.float64), atol=0.06, rtol=0)
    for lag in (1, 10):
        assert (x[:, lag:] * x[:, :-lag]).mean() == pytest.approx(MEMORY**lag, abs=0.04)


def test_landmarks_lie_on_the_lips_of_the_picture(monkeypatch):
    """Both draw the pose first, so that one seed gives a picture and its points; halfway between edges is lip."""
    for name in ("LIGHT", "FLICKER", "BLUR", "HIDDEN"):
        monkeypatch.setattr(renderer, name, 0.0)
    z = shapes("AA", "AE", "AO").expand(3, 5, 6)
    height, width = 160, 240
    look = face(3, scale=1.1)
    seen = picture(z, look, (height, width), seed=3)
    points = landmarks(z, look, height, width, torch.Generator().manual_seed(3), 0.0).view(3, 5, POINTS, 2)
    for outer, inner in ((3, 2), (9, 6)):  # the middles of the lower and the upper lip
        between = (points[:, :, outer] + points[:, :, OUTER + inner]) / 2
        column, row = between.round().long().unbind(-1)
        grey = seen.flatten(2).gather(2, (row * width + column)[..., None])
        torch.testing.assert_close(grey, torch.full_like(grey, 0.45), atol=0.05, rtol=0)
    inside = points[:, :, OUTER:].mean(2).round().long()
    assert seen.flatten(2).gather(2, (inside[..., 1] * width + inside[..., 0])[..., None]).max() < 0.35
    span = (points[:, :, 0] - points[:, :, OUTER // 2]).norm(dim=-1)
    half = 0.8 * (1 + 0.25 * z[..., 1] - 0.3 * z[..., 2])
    torch.testing.assert_close(span, 2 * half * 1.1 * height / 2, atol=0.5, rtol=0)


def test_landmarks_have_their_noise_and_order():
    z = shapes("SIL").expand(1, 4000, 6)
    clean = landmarks(z, face(), 32, 48, torch.Generator().manual_seed(0), 0.0)
    noisy = landmarks(z, face(), 32, 48, torch.Generator().manual_seed(0), 0.7)
    assert clean.shape == (1, 4000, 2 * (OUTER + INNER))
    assert (noisy - clean).std() == pytest.approx(0.7, rel=0.02)
    x, y = clean.view(4000, POINTS, 2).mean(0).unbind(-1)
    assert x[0] > x[3] > x[6]
    assert y[3] > y[0] > y[9]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pictures_are_drawn_where_the_generator_is():
    look = Speakers.draw(20, 0, device="cuda").appearance
    z = torch.tensor(TARGETS, device="cuda")[:20, None].expand(20, 8, 6)
    found = render(z, look, 32, 48, torch.Generator("cuda").manual_seed(0), 0.03)
    assert found.device.type == "cuda"
    assert bool(torch.isfinite(found).all())
