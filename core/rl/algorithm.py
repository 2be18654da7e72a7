"""What every learner of this package adds to Stable-Baselines3: tensors in, tensors out, and files without pickles."""

from __future__ import annotations

import io
import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from core.errors import InputError
from core.rl import checkpoint, resume
from core.rl.rollout import env_action

Path = str | pathlib.Path


class TrainingDiverged(RuntimeError):
    """A loss or a parameter became infinite or NaN; the model holds its last good parameters again."""


class DeviceAlgorithm(BaseAlgorithm):
    """Mixed into an algorithm of Stable-Baselines3, in front of it.

    Attributes:
        saved_arguments: constructor arguments that ``save`` writes and ``load`` passes.
        resumed_attributes: attributes of plain data that the exact state holds.
    """

    saved_arguments: ClassVar[tuple[str, ...]] = ()
    resumed_attributes: ClassVar[tuple[str, ...]] = (
        "num_timesteps",
        "_total_timesteps",
        "_n_updates",
        "_episode_num",
        "_current_progress_remaining",
    )

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        if unwrap_vec_normalize(wrapped) is not None:
            raise InputError(
                "env: VecNormalize; allowed: an environment without it (the views scale observations to [-1, 1]; "
                "running statistics would be missing from the saved weights)"
            )
        return wrapped

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if self._custom_logger or self.verbose or self.tensorboard_log:
            return super()._setup_learn(*args, **kwargs)
        # SB3 would make a folder in the temporary directory for each learner, though nothing is written to it.
        self.set_logger(Logger(folder=None, output_formats=[]))
        try:
            return super()._setup_learn(*args, **kwargs)
        finally:
            self._custom_logger = False  # so that a later ``verbose`` is heeded

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """SB3's ``predict``; a tensor ``(n, ...)`` of observations gives a tensor of actions on its device."""
        if not isinstance(observation, Tensor):
            return super().predict(observation, state, episode_start, deterministic)
        self.policy.set_training_mode(False)
        with torch.no_grad():
            actions = self.policy._predict(observation, deterministic=deterministic)
        return env_action(self, actions), state

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_last_obs", "_last_episode_starts", "_last_original_obs"]

    def save(
        self,
        path: Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        *,
        format: str = "safetensors",
    ) -> None:
        """Write ``<path>.safetensors`` (weights, optimiser) and ``<path>.json`` (arguments, spaces, counters).

        ``format="sb3"`` writes SB3's zip instead, which holds pickles; ``exclude`` and ``include`` are for it alone.

        Raises:
            InputError: an unknown format, or an argument that JSON cannot hold.
        """
        if format == "sb3":
            super().save(path, exclude, include)
        elif format != "safetensors":
            raise InputError(f"format: {format!r}; allowed: 'safetensors', 'sb3'")
        elif exclude is not None or include is not None or isinstance(path, io.BufferedIOBase):
            raise InputError("save: exclude, include and open files are for format='sb3'")
        else:
            checkpoint.save(self, path)

    @classmethod
    def load(
        cls,
        path: Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Rebuild what ``save`` wrote; ``kwargs`` replace constructor arguments.

        SB3's zip runs code when it is read, so it is refused unless ``trust_pickle``.

        Raises:
            InputError: files that are missing, damaged, or of another algorithm; a zip that is not trusted.
        """
        if isinstance(path, io.BufferedIOBase) or (archive := _zip_of(path)) is not None:
            if not trust_pickle:
                raise InputError(f"{path}: SB3's zip holds pickles, which can run code; allowed with trust_pickle=True")
            source = path if isinstance(path, io.BufferedIOBase) else archive
            assert source is not None
            return super().load(source, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        return checkpoint.load(cls, path, env, device, kwargs)

    @classmethod
    def unbuilt(cls, policy: str, env: GymEnv | None, device: torch.device | str, arguments: dict[str, Any]) -> Self:
        """A model of the saved constructor ``arguments`` without its networks yet, for ``load``."""
        build: Any = cls
        return build(policy, env, device=device, _init_setup_model=False, **arguments)

    def memory_tensors(self) -> dict[str, Tensor]:
        """What ``save_state`` keeps beside networks and environment; nothing by default."""
        return {}

    def load_memory_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``memory_tensors``."""

    def save_state(self, path: Path) -> None:
        """Write everything that the rest of the training depends on, atomically, as one safetensors file.

        Raises:
            InputError: the environment is not an ``SB3VecEnv``, so that its state is out of reach.
        """
        resume.save_state(self, path)

    def restore_state(self, path: Path) -> None:
        """Go on from ``save_state``: ``learn(total - model.num_timesteps, reset_num_timesteps=False)``.

        The model must have been built as the saved one was. On the CPU and with the same number of threads the result
        equals that of a training that was never interrupted, bit for bit.

        Raises:
            InputError: a missing or damaged file, or one of another model.
        """
        resume.restore_state(self, path)


def _zip_of(path: Path) -> pathlib.Path | None:
    """SB3's archive at this path (SB3 adds the suffix by itself), if that is what stands there."""
    for candidate in (pathlib.Path(path), pathlib.Path(f"{path}.zip")):
        if candidate.is_file() and zipfile.is_zipfile(candidate):
            return candidate
    return None
