"""For orchestrators and Prometheus."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.routes.documentation import error_responses
from service.schemas import HealthReply
from service.served_models import label
from service.state import State, state_of

router = APIRouter(tags=["operation"])
_UNHEALTHY = {503: {"model": HealthReply, "description": "No."}, **error_responses(401)}


@router.get("/healthz", responses=_UNHEALTHY, summary="Is it alive?")
async def healthz(request: Request, response: Response) -> HealthReply:
    """Say whether every engine works; 503 means that a restart is due."""
    state = state_of(request)
    return _health(state, response, why_not_live(state))


@router.get("/readyz", responses=_UNHEALTHY, summary="Does it take requests?")
async def readyz(request: Request, response: Response) -> HealthReply:
    """Say whether requests should come here; bundles that failed to load beside healthy ones don't count."""
    state = state_of(request)
    return _health(state, response, why_not_ready(state))


@router.get("/metrics", response_class=Response, responses=error_responses(401, 503), summary="Metrics for Prometheus")
async def metrics(request: Request) -> Response:
    """Give every metric in Prometheus's text format."""
    return Response(await state_of(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def why_not_live(state: State) -> str | None:
    """Return what a restart would mend; None if nothing."""
    sick = [engine.name for engine in state.models.engines if engine.health in ("died", "stalled")]
    return f"the engine of {', '.join(sick)} does not answer" if sick else None


def why_not_ready(state: State) -> str | None:
    """Return why no requests should come; None if they should."""
    unfit = [engine.name for engine in state.models.engines if engine.health != "ready"]
    if state.draining:
        return "the server is stopping"
    return f"the engine of {', '.join(unfit)} does not answer" if unfit else None


def _health(state: State, response: Response, fault: str | None) -> HealthReply:
    response.status_code = 503 if fault else 200
    states: dict[str, str] = {label(entry): "failed" for entry in state.models.failed}
    states |= {label(entry): entry.health for entry in state.models.engines}
    return HealthReply(ok=fault is None, reason=fault, models=states)
