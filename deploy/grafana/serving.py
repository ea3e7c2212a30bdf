"""How images are served: queue, batches, stages, processes, memory."""

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.layout import any_of, dashboard
from deploy.grafana.panels import Query, Steps, facts, heat_map, lines

OF = 'instance=~"$instance"'
MODEL = "{{model}}@{{version}}"
VARIABLES = (any_of("instance", "Server", 'label_values(up{job="energy-ood"}, instance)'),)


def _quantiles(metric: str, by: str, legend: str) -> tuple[Query, ...]:
    return tuple(
        Query(
            f"histogram_quantile({quantile}, sum by ({by}, le) (rate({metric}_bucket{{{OF}}}[$__rate_interval])))",
            f"{legend} {name}",
        )
        for quantile, name in ((0.5, "median"), (0.99, "99th percentile"))
    )


def _stages(quantile: float) -> Query:
    buckets = f"sum by (stage, le) (rate(ood_stage_seconds_bucket{{{OF}}}[$__rate_interval]))"
    return Query(f"histogram_quantile({quantile}, {buckets})", "{{stage}}")


REQUESTS = (
    lines(
        "Requests by route",
        "Requests a second; paths that are not the server's are `unmatched`.",
        (Query(f"sum by (route) (rate(ood_http_requests_total{{{OF}}}[$__rate_interval])) > 0", "{{route}}"),),
        unit=units.RequestsPerSecond,
        span=8,
    ),
    lines(
        "Refused by code",
        "Requests a second that were answered with an error, by its code; the five most frequent.",
        (Query(f"topk(5, sum by (code) (rate(ood_refused_requests_total{{{OF}}}[$__rate_interval])))", "{{code}}"),),
        unit=units.RequestsPerSecond,
        span=8,
    ),
    lines(
        "Dropped from the queue",
        "Requests a second thrown out before their turn: their client left, or their time was up.",
        (
            Query(
                f"sum by (model, reason) (rate(ood_dropped_requests_total{{{OF}}}[$__rate_interval]))",
                "{{model}} {{reason}}",
            ),
        ),
        unit=units.RequestsPerSecond,
        span=8,
    ),
)
QUEUE = (
    lines(
        "Line",
        "Requests that wait, unread, for their turn; each HTTP process lets OOD_MAX_QUEUE_IMAGES of them wait and "
        "turns others away.",
        (Query(f"ood_waiting_requests{{{OF}}}", "{{instance}}"),),
        unit="req",
        span=8,
    ),
    lines(
        "Queue",
        "Images that were read and wait for a model; OOD_MAX_QUEUE_IMAGES is each model's limit.",
        (Query(f"ood_queue_images{{{OF}}}", f"{MODEL} {{{{instance}}}}"),),
        unit="img",
        span=8,
    ),
    lines(
        "Bodies held",
        "Bytes of request bodies that are held; OOD_MAX_PENDING_BYTES is their limit.",
        (Query(f"ood_pending_bytes{{{OF}}}", "{{instance}}"),),
        unit=units.BytesIEC,
        span=8,
    ),
)
BATCHES = (
    heat_map(
        "Batch sizes",
        "Batches a second by their images.",
        f"sum by (le) (rate(ood_batch_images_bucket{{{OF}}}[$__rate_interval]))",
    ),
    lines(
        "Images in a batch",
        "The mean.",
        (
            Query(
                f"sum by (model, version) (rate(ood_batch_images_sum{{{OF}}}[$__rate_interval])) "
                f"/ sum by (model, version) (rate(ood_batch_images_count{{{OF}}}[$__rate_interval]))",
                MODEL,
            ),
        ),
        unit="img",
        span=6,
    ),
    lines(
        "Time of a batch",
        "Seconds that a batch takes in the network.",
        _quantiles("ood_batch_seconds", "model, version", MODEL),
        unit=units.Seconds,
        span=6,
    ),
)
STAGES = (
    lines(
        "Stages, median",
        "Seconds of a request: decode (waiting for a thread included), queue (the line before it included), forward, "
        "and the total.",
        (_stages(0.5),),
        unit=units.Seconds,
    ),
    lines(
        "Stages, 99th percentile",
        "As beside, for the slowest hundredth; the objective for the total is a second.",
        (_stages(0.99),),
        unit=units.Seconds,
        steps=Steps(red=1),
    ),
)
PROCESSES = (
    lines(
        "HTTP workers",
        "HTTP processes that ask the engines; fewer than OOD_WORKERS while one is replaced.",
        (Query(f"ood_http_workers{{{OF}}}", "{{instance}}"),),
        span=6,
    ),
    lines(
        "Replaced processes",
        "Processes replaced within an hour; above 0 something is wrong, though the server goes on.",
        (
            Query(
                f"sum by (instance, process) (increase(ood_process_restarts_total{{{OF}}}[1h]))",
                "{{instance}} {{process}}",
            ),
        ),
        steps=Steps(red=1),
        span=6,
    ),
    lines(
        "Memory",
        "Resident memory of the process that runs the models.",
        (Query(f'process_resident_memory_bytes{{job="energy-ood", {OF}}}', "{{instance}}"),),
        unit=units.BytesIEC,
        span=6,
    ),
    lines(
        "Processor",
        "Cores that the process that runs the models keeps busy.",
        (Query(f'rate(process_cpu_seconds_total{{job="energy-ood", {OF}}}[$__rate_interval])', "{{instance}}"),),
        unit="cores",
        span=6,
    ),
    facts(
        "Models",
        "What is served: each bundle's checksum, and how its network runs.",
        (Query(f"ood_model_info{{{OF}}}"),),
    ),
    facts("Software", "What serves it.", (Query(f"ood_build_info{{{OF}}}"),)),
)


def serving() -> Dashboard:
    """Return the dashboard."""
    return dashboard(
        "energy-ood-serving",
        "Energy OOD: serving",
        "How images are served: requests, queue, batches, stages, processes.",
        VARIABLES,
        (
            ("Requests", REQUESTS),
            ("Queue", QUEUE),
            ("Batches", BATCHES),
            ("Stages", STAGES),
            ("Processes", PROCESSES),
        ),
    )
