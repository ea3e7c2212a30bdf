"""What is watched of a model's traffic."""

from typing import Annotated

from fastapi import APIRouter, Path, Request

from service.routes.documentation import error_responses
from service.schemas import WatchReply
from service.state import state_of

router = APIRouter(tags=["operation"])


@router.get("/models/{model}/watch", responses=error_responses(401, 404, 503), summary="Watch a model's traffic")
async def watch(
    request: Request,
    model: Annotated[str, Path(description="`name`, its newest version that is loaded, or `name@version`.")],
) -> WatchReply:
    """Show OOD rate, share of true OOD, distribution and alarm, from the same state as the metrics."""
    state = state_of(request)
    return await state.metrics.watched(state.models.find(model).name)
