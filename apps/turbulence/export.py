"""A trained policy for other codes: a NumPy module with its weights, and the network alone as ONNX."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from apps.turbulence.interpretation import standardisation
from core import files
from core.errors import InputError
from core.rl import PPO, VRACER, LearnedPolicy
from simulators.turbulence.agents import BOUND, ClosureAgents, PolicyClosure, interpolation_matrix
from simulators.turbulence.agents.rewards import SMALLEST
from simulators.turbulence.agents.states import SPECTRAL, StateKind
from simulators.turbulence.agents.world import SEEN

OPSET, IR_VERSION = 17, 8
"""Of ONNX: old enough for any reader of the last years."""


@dataclass(frozen=True)
class Network:
    """A policy's mean action: tanh between the layers, then cut or squashed to [-1, 1].

    Attributes:
        weights: ``(out, in)`` of each layer, float32.
        biases: ``(out,)`` of each layer.
        end: what brings the last layer into [-1, 1].
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    end: Literal["clip", "tanh"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        module: the Python file.
        weights: the arrays that it loads.
        network: the ONNX file; None without the package ``onnx``.
        note: one line about the ONNX file.
    """

    module: Path
    weights: Path
    network: Path | None
    note: str


def export_policy(closure: PolicyClosure, folder: str | Path) -> Exported:
    """Write ``closure.py``, ``closure.npz`` and, where the package ``onnx`` is installed, ``closure.onnx``.

    ``closure.py`` needs NumPy alone: ``coefficient(omega, load("closure.npz"))`` is the field that
    ``PolicyClosure.coefficient_field`` gives. The ONNX network maps standardised observations ``(agents, S)`` to
    coefficients ``(agents, 1)``, without interpolation.

    Args:
        closure: of a trained model of ``core.rl``.
        folder: made if absent.

    Raises:
        InputError: a policy that is no trained network of tanh layers.
    """
    network = network_of(closure)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    module, weights = target / "closure.py", target / "closure.npz"
    buffer = io.BytesIO()
    np.savez(buffer, **_arrays(closure.world, network))  # type: ignore[arg-type]
    files.write(weights, buffer.getvalue())
    files.write(module, _source(closure.world, network))
    if importlib.util.find_spec("onnx") is None:
        return Exported(module, weights, None, "closure.onnx was not written: pip install onnx")
    path = target / "closure.onnx"
    files.write(path, _onnx(network))
    return Exported(module, weights, path, "closure.onnx holds the network, from observations to coefficients")


def network_of(closure: PolicyClosure) -> Network:
    """The layers of a trained policy's mean action.

    Raises:
        InputError: not a trained model of this package, or layers other than tanh.
    """
    policy = closure.policy
    if not isinstance(policy, LearnedPolicy):
        raise InputError(f"policy: {type(policy).__name__}; only a LearnedPolicy of a trained model can be exported")
    model: Any = policy.model
    if isinstance(model, PPO):
        modules = [*model.policy.mlp_extractor.policy_net, model.policy.action_net]
    elif isinstance(model, VRACER):
        modules = list(model.policy.net)
    else:
        raise InputError(f"policy: a model of {type(model).__name__}; only PPO and VRACER can be exported")
    linear = [m for m in modules if isinstance(m, torch.nn.Linear)]
    other = [type(m).__name__ for m in modules if not isinstance(m, torch.nn.Linear | torch.nn.Tanh)]
    if other or len(modules) != 2 * len(linear) - 1:
        raise InputError(f"policy: has layers {', '.join(other) or 'without tanh between'}; only tanh can be exported")
    weights, biases = ([_numbers(x) for x in xs] for xs in ([m.weight for m in linear], [m.bias for m in linear]))
    if isinstance(model, VRACER):
        # It standardises what it sees once more, and its last layer gives value, mean and deviation.
        mean, std = _numbers(model.policy.observation_mean), _numbers(model.policy.observation_std)
        weights[0], biases[0] = weights[0] / std, biases[0] - weights[0] @ (mean / std)
        weights[-1], biases[-1] = weights[-1][1:2], biases[-1][1:2]
    end: Literal["clip", "tanh"] = "tanh" if isinstance(model, VRACER) else "clip"
    return Network(tuple(w.astype(np.float32) for w in weights), tuple(b.astype(np.float32) for b in biases), end)


def _numbers(tensor: torch.Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    return found


def _arrays(world: ClosureAgents, network: Network) -> dict[str, NDArray[Any]]:
    mean, std = standardisation(world)
    arrays: dict[str, NDArray[Any]] = {
        "state": np.array(world.state),
        "names": np.array(world.state_names),
        "mean": mean,
        "std": std,
        "interpolation": interpolation_matrix(world.solver.grid.n, world.agents_per_side, world.interpolation).numpy(),
        "layers": np.array(len(network.weights)),
    }
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        arrays |= {f"weight{i}": weight, f"bias{i}": bias}
    return arrays


MODULE = """\
\"\"\"A sub-grid closure of 2D turbulence on {n} x {n} points, learned by {agents} agents; needs NumPy only.

Fields are (N, N) on the box [0, 2 pi)^2 with x on axis 0 and y on axis 1; omega = dv/dx - du/dy, lap psi = -omega,
u = dpsi/dy, v = -dpsi/dx, D = 2 pi / N, <.> the mean over the box. ``coefficient`` gives c(x, y) = {symbol} of

    nu_e = {viscosity},    tau_ij = -2 nu_e S_ij,    Pi = curl(div tau),

    d omega/dt + u.grad omega = (1/Re) lap omega - alpha omega - f - Pi,

so that c > 0 dissipates and c < 0 is backscatter; nu_e constant gives Pi = -nu_e lap omega. Of S_ij and tau_ij,
Pi_hat = kx ky (tau11 - tau22)_hat - (kx^2 - ky^2) tau12_hat. c is held for {held} steps of dt = {dt:g}; the flow has
Re = {reynolds:g}, forcing wavenumbers (kx, ky) = ({fkx}, {fky}), beta = {beta:g}, alpha = {drag:g}.
\"\"\"

import numpy as np

STATE = "{state}"


def load(path):
    \"\"\"The weights in ``closure.npz``.\"\"\"
    with np.load(path, allow_pickle=False) as file:
        weights = dict(file)
    if str(weights["state"]) != STATE:
        raise ValueError(f"{{path}}: belongs to another module, of the state {{weights['state']}}")
    return weights


def coefficient(omega, weights):
    \"\"\"c(x, y), (N, N), for the vorticity omega (N, N).\"\"\"
    matrix = weights["interpolation"]
    n, agents = matrix.shape
    if np.shape(omega) != (n, n):
        raise ValueError(f"omega of shape {{np.shape(omega)}}: must be ({{n}}, {{n}})")
    x = np.clip((observed(omega, agents) - weights["mean"]) / weights["std"], -{seen}, {seen})
    for i in range(int(weights["layers"])):
        x = (np.tanh(x) if i else x) @ weights[f"weight{{i}}"].T + weights[f"bias{{i}}"]
    c = {bound} * {end}
{positivity}    return matrix @ c.reshape(agents, agents) @ matrix.T


def observed(omega, agents):
    \"\"\"What agents x agents agents on every (N / agents)-th point see, one in a row.\"\"\"
    n = len(omega)
    k = np.fft.fftfreq(n, 1 / n)
    kx, ky = np.meshgrid(k, k, indexing="ij")
    w = np.fft.fft2(omega) * ((abs(kx) < n / 2) & (abs(ky) < n / 2))  # without the wavenumber N/2
    k2 = kx**2 + ky**2
    psi = np.where(k2 > 0, w / np.maximum(k2, 1), 0)

    def at_agents(spectrum):
        return np.fft.ifft2(spectrum).real[:: n // agents, :: n // agents].ravel()

    seen = []
{observed}    return np.stack(seen, axis=-1)
"""

STRAIN = """\
    s11, s12 = at_agents(-kx * ky * psi), at_agents(0.5 * (kx**2 - ky**2) * psi)
    seen += [2 * (s11**2 + s12**2), -0.5 * at_agents(w) ** 2]  # tr S^2, tr W^2 of the velocity gradient
"""
HESSIAN = """\
    seen += [at_agents(1j * kx * w) ** 2 + at_agents(1j * ky * w) ** 2]  # |grad omega|^2
    xx, xy, yy = at_agents(-kx * kx * w), at_agents(-kx * ky * w), at_agents(-ky * ky * w)
    seen += [xx**2 + 2 * xy**2 + yy**2, xx * yy - xy**2]  # tr H^2 and det H of the Hessian of omega
"""
SECOND = """\
    u, v = 1j * ky * psi, -1j * kx * psi
    a, b, c, d = (at_agents(-x) for x in ({corners}))
    seen += [a + d, a**2 + d**2 + 0.5 * (b + c) ** 2, -0.5 * (b - c) ** 2]  # of the second derivatives of (u, v)
"""
INVARIANT = STRAIN + HESSIAN + "    seen = [np.sign(x) * np.sqrt(abs(x)) for x in seen]\n"
PLACES: dict[StateKind, str] = {
    "invariant": INVARIANT,
    "invariants": INVARIANT,
    "invariantlocalandglobalgradgrad": STRAIN + SECOND.format(corners="kx**2 * u, kx**2 * v, ky**2 * u, ky**2 * v"),
    "invariantlocal": STRAIN + SECOND.format(corners="kx**2 * u, kx * ky * u, kx * ky * v, ky**2 * v"),
    "psiomega": "    seen += [at_agents(psi), at_agents(w)]\n",
    "psiomegablock": """\
    fields = np.stack([np.fft.ifft2(x).real for x in (psi, w)], axis=-1)
    blocks = fields.reshape(agents, n // agents, agents, n // agents, 2).swapaxes(1, 2)
    seen += list(blocks.reshape(agents**2, -1).T)
""",
}
"""What the module does for the numbers of an agent's place."""
SPECTRUM = """\
    power = abs(w) ** 2 / n**4{factor}
    along_x, along_y = power.sum(1)[: n // 2], power.sum(0)[: n // 2]
    spectrum = {spectrum}
    seen += [np.full(agents**2, x) for x in np.log(np.maximum(spectrum, {smallest}))]
"""


def _source(world: ClosureAgents, network: Network) -> str:
    case = world.solver.case
    body = "    seen += [np.zeros(agents**2)]  # tr S\n" if "tr S" in world.state_names else ""
    body += PLACES.get(world.state, "")
    if world.state in SPECTRAL:
        body += SPECTRUM.format(
            factor=" * np.where(k2 > 0, 1 / np.maximum(k2, 1), 0)" if world.state == "energy" else " / 2",
            spectrum="np.append(along_x, along_y)" if world.stacked_state else "(along_x + along_y) / 2",
            smallest=SMALLEST,
        )
    positivity = {
        "none": "",
        "clip": "    c = np.maximum(c, 0)\n",
        "softplus": f"    c = np.log1p(np.exp(c * {SEEN / BOUND})) / {SEEN / BOUND}\n",
    }
    leith = world.action == "leith"
    return MODULE.format(
        n=world.solver.grid.n,
        agents=world.agents,
        symbol="Cl^3" if leith else "Cs^2",
        viscosity="c D^3 <|grad omega|>" if leith else "c D^2 sqrt(<omega^2>)",
        held=world.steps_per_action,
        dt=world.solver.dt,
        reynolds=case.reynolds,
        fkx=case.fkx,
        fky=case.fky,
        beta=case.beta,
        drag=case.drag,
        state=world.state,
        seen=SEEN,
        bound=BOUND,
        end="np.clip(x, -1, 1)" if network.end == "clip" else "np.tanh(x)",
        positivity=positivity[world.positivity],
        observed=body,
    )


def _onnx(network: Network) -> bytes:
    onnx: Any = importlib.import_module("onnx")
    helper, arrays = onnx.helper, onnx.numpy_helper
    constants = {"low": -1.0, "high": 1.0, "bound": BOUND}
    held = [arrays.from_array(np.array(value, np.float32), name) for name, value in constants.items()]
    nodes, last = [], "observation"
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        held += [arrays.from_array(weight, f"weight{i}"), arrays.from_array(bias, f"bias{i}")]
        if i:
            nodes.append(helper.make_node("Tanh", [last], [f"tanh{i}"]))
            last = f"tanh{i}"
        nodes.append(helper.make_node("Gemm", [last, f"weight{i}", f"bias{i}"], [f"layer{i}"], transB=1))
        last = f"layer{i}"
    end = ("Clip", [last, "low", "high"]) if network.end == "clip" else ("Tanh", [last])
    nodes += [helper.make_node(*end, ["unit"]), helper.make_node("Mul", ["unit", "bound"], ["coefficient"])]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["agents", size])
        for name, size in (("observation", network.weights[0].shape[1]), ("coefficient", 1))
    ]
    graph = helper.make_graph(nodes, "closure", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
