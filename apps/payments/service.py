"""The decision service over HTTP: JSON in, the engine's decisions out when they are in the log."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import math
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import torch
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from apps.payments.engine import Answer, Conflict, Engine, Reward
from apps.payments.log.parquet_log import Fsync
from apps.payments.log.schema import transaction_key
from apps.payments.policy import NAME, Policy
from core.errors import InputError, require
from simulators.payments.context import CATEGORIES, FLAGS, FUNDINGS, INTERACTIONS, NUMERICS, SCHEMES, PaymentContext

if TYPE_CHECKING:
    from fastapi import FastAPI

ROWS = 4096
"""Most payments or rewards in one request."""
UNKNOWN = -1
Name = Annotated[str, Field(min_length=1, max_length=256)]
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def _level(names: tuple[str, ...]) -> BeforeValidator:
    """Take a name for its index; one that is not known is unknown."""
    return BeforeValidator(
        lambda value: (names.index(value) if value in names else UNKNOWN) if isinstance(value, str) else value
    )


class Row(BaseModel):
    """A row of a request."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Payment(Row):
    """A payment to be decided."""

    tenant: Name
    """Whose payment it is."""
    transaction_id: Name
    """Unique for the tenant; asked for again it gets the same decision."""
    issuer: Level
    """Bank of the card; a level that the policy does not know counts as unknown, as in every category."""
    merchant: Level
    """Shop."""
    country: Level
    """Of the issuer."""
    scheme: Annotated[Level, _level(SCHEMES)]
    """Index or name."""
    funding: Annotated[Level, _level(FUNDINGS)]
    """Index or name."""
    interaction: Annotated[Level, _level(INTERACTIONS)]
    """Index or name."""
    amount: float | None = Field(default=None, gt=0)
    """EUR; or give ``log_amount``."""
    log_amount: float | None = None
    """Natural logarithm of the amount in EUR."""
    cross_border: Share
    """1 where the shop's country is another."""
    hour: float = Field(ge=0, le=24)
    """Local time."""
    expiry_days: float
    """Until the card expires, negative after it."""
    token_available: Share
    """1 where a network token exists."""
    stored: Share
    """1 where the card is on file."""
    attempt: float = Field(ge=0)
    """Declined attempts before this one."""
    available: list[int] = Field(min_length=1)
    """Ids of the available actions; bit f of an id says whether intervention f is on."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.amount is None) == (self.log_amount is None):
            raise InputError("give either amount or log_amount")
        return self


class RewardRow(Row):
    """What was answered to a decision."""

    tenant: Name | None = None
    """With ``transaction_id``; or give ``decision_id``."""
    transaction_id: Name | None = None
    """As it was decided."""
    decision_id: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    """As the decision's answer has it."""
    reward: Share
    """1 for approved."""
    event_time: AwareDatetime | None = None
    """When the bank answered, with a time zone; now if absent."""
    source: str = Field(default="", max_length=256)
    """Who says so."""
    attempt: int = Field(default=0, ge=0, le=1000)
    """Number of the try that it answers."""

    @model_validator(mode="after")
    def _one_id(self) -> Self:
        named = self.tenant is not None and self.transaction_id is not None
        if named == (self.decision_id is not None) or (self.tenant is None) != (self.transaction_id is None):
            raise InputError("give either decision_id, or tenant and transaction_id")
        return self

    def logged(self, now: int) -> Reward:
        """As the engine takes it."""
        key = transaction_key(self.tenant or "", self.transaction_id or "")
        if self.decision_id is not None:
            key = bytes.fromhex(self.decision_id)
        moment = now if self.event_time is None else round(self.event_time.timestamp() * 1e6)
        return Reward(key, self.reward, moment, self.source, self.attempt)


Payments = Annotated[list[Payment], Field(min_length=1, max_length=ROWS)]
Rewards = Annotated[list[RewardRow], Field(min_length=1, max_length=ROWS)]


def create_app(engine: Engine) -> FastAPI:
    """The HTTP face of an engine: ``POST /v1/decide``, ``POST /v1/reward``, ``GET /healthz`` and ``GET /metrics``.

    Bad input is answered by 422, a transaction that comes again with another content by 409, and a log that cannot be
    written by 503, each with ``{"error": "..."}`` of one line. The engine is closed when the app shuts down.
    """
    fastapi, responses = require("fastapi", "payments"), require("fastapi.responses", "payments")
    validation = require("fastapi.exceptions", "payments").RequestValidationError

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app: FastAPI = fastapi.FastAPI(title="Szilard payments", lifespan=lifespan)

    def refuse(status: int, counter: str) -> Callable[[Any, Exception], Any]:
        def answer(_: Any, error: Exception) -> Any:
            engine.counters.add(counter)
            line = _first_error(error) if isinstance(error, validation) else str(error)
            return responses.JSONResponse({"error": line}, status)

        return answer

    for kind, status, counter in (
        (validation, 422, "refused_requests"),
        (InputError, 422, "refused_requests"),
        (Conflict, 409, "refused_requests"),
        (OSError, 503, "failed_requests"),
    ):
        app.add_exception_handler(kind, refuse(status, counter))

    @app.post("/v1/decide")
    async def decide(payments: Payments) -> Any:
        """Choose an action for each payment; a transaction that was decided before gets that decision again."""
        started = time.perf_counter()
        context, mask = _columns(payments, engine.policy)
        tenants, transactions = [p.tenant for p in payments], [p.transaction_id for p in payments]
        answers = await asyncio.wrap_future(engine.decide(tenants, transactions, context, mask))
        engine.counters.observe('path="/v1/decide"', time.perf_counter() - started)
        return responses.JSONResponse(list(map(_json, payments, answers)))

    @app.post("/v1/reward")
    async def reward(rewards: Rewards) -> Any:
        """Log what was answered to decisions; the join says later which of several rewards counts."""
        started = time.perf_counter()
        logged = [row.logged(time.time_ns() // 1000) for row in rewards]
        statuses = await asyncio.wrap_future(engine.reward(logged))
        engine.counters.observe('path="/v1/reward"', time.perf_counter() - started)
        return responses.JSONResponse(
            [{"decision_id": r.decision_id.hex(), "status": s} for r, s in zip(logged, statuses, strict=True)]
        )

    @app.get("/healthz")
    async def healthz() -> Any:
        """Whether the log can be written, and by which policy payments are decided."""
        policy = engine.policy
        found = {
            "status": "degraded" if engine.trouble else "ok",
            "trouble": engine.trouble,
            "policy_id": policy.policy_id,
            "generation": policy.generation,
            "model_sha": policy.model_sha.hex() if policy.model_sha else None,
        }
        return responses.JSONResponse(found, 503 if engine.failure else 200)

    @app.get("/metrics")
    async def metrics() -> Any:
        """Counters and latencies for Prometheus."""
        return responses.PlainTextResponse(engine.counters.text(), media_type="text/plain; version=0.0.4")

    return app


def serve(
    policy: Path,
    log: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    fsync: Fsync = "batch",
    keep_probabilities: bool = False,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> None:
    """Serve a stored policy until a signal ends it; a new policy is served after a restart, with the same log.

    Args:
        policy: folder of the policy.
        log: folder of the log, made if absent.
        host: address to listen on; one that is not of the loopback lets others in, unauthenticated.
        port: to listen on; 0 takes a free one.
        fsync: ``batch``, ``always`` or ``off``.
        keep_probabilities: log the probabilities of all actions.
        device: of the policy.
        say: receives the lines for the user, the last one with the address.

    Raises:
        InputError: no policy there, a log that is refused, or an address that cannot be had.
    """
    uvicorn = require("uvicorn", "payments")
    if (log / NAME).exists():
        raise InputError(f"{log}: is the folder of a policy; the log needs one of its own")
    listening = _socket(host, port)
    with listening:
        engine = Engine(Policy.load(policy, device), log, fsync=fsync, keep_probabilities=keep_probabilities)
        for name, recovery in engine.recovery.items():
            if recovery.rows or recovery.torn:
                say(f"{name}: {recovery.rows} rows of a service that was killed recovered, {recovery.torn} bytes cut")
            for line in recovery.damaged:
                say(f"{name}: {line}")
        if not _is_loopback(host):
            say(f"warning: {host} is no loopback address, and whoever reaches it can ask for decisions")
        # What is there for good need not be searched for garbage, which would stop the decisions for a moment.
        gc.freeze()
        torch.set_num_threads(1)
        say(f"serving {engine.policy.policy_id} on http://{_authority(host, listening.getsockname()[1])}")
        settings = uvicorn.Config(create_app(engine), log_level="warning", access_log=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listening])


def _columns(payments: list[Payment], policy: Policy) -> tuple[PaymentContext, torch.Tensor]:
    """The payments as the policy takes them: context and mask ``(n, K)``.

    Raises:
        InputError: an action that the policy does not have.
    """
    actions = policy.sizes.actions
    mask = torch.zeros(len(payments), actions, dtype=torch.bool)
    for row, payment in enumerate(payments):
        for action in payment.available:
            if not 0 <= action < actions:
                raise InputError(f"row {row}: available: {action} is not one of the actions 0 to {actions - 1}")
        mask[row, payment.available] = True
    levels = [[getattr(p, name) for p in payments] for name in CATEGORIES]
    numbers = [[getattr(p, name) for p in payments] for name in NUMERICS[1:]]
    amounts = [p.log_amount if p.amount is None else math.log(p.amount) for p in payments]
    columns = dict(zip(CATEGORIES, torch.tensor(levels).unbind(), strict=True))
    columns |= zip(NUMERICS, torch.tensor([amounts, *numbers], dtype=torch.float64).unbind(), strict=True)
    return PaymentContext(**columns), mask


def _json(payment: Payment, answer: Answer) -> dict[str, Any]:
    return {
        "tenant": payment.tenant,
        "transaction_id": payment.transaction_id,
        "decision_id": answer.decision_id.hex(),
        "action": answer.action,
        "interventions": [name for f, name in enumerate(FLAGS) if answer.action >> f & 1],
        "propensity": answer.propensity,
        "policy_id": answer.policy_id,
        "generation": answer.generation,
        "model_sha": answer.model_sha.hex(),
        "event_time": answer.event_time,
        "repeated": answer.repeated,
    }


def _first_error(error: Any) -> str:
    """The first of FastAPI's validation errors in one line: row, field, what is wrong."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"body: no JSON ({first['ctx']['error']})"
    where = [str(part) for part in first["loc"][1:]]
    place = [f"row {where[0]}", *([".".join(where[1:])] if where[1:] else [])] if where else ["body"]
    given = first["input"]
    value = f", is {given!r}" if isinstance(given, str | int | float) and len(str(given)) < 100 else ""
    reason = first["msg"].removeprefix("Value error, ")
    return f"{': '.join(place)}: {reason[0].lower()}{reason[1:]}{value}"


def _socket(host: str, port: int) -> socket.socket:
    """Listen.

    Raises:
        InputError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        raise InputError(f"{host} port {port}: {error.strerror or error}") from error
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
