"""One model's traffic: how its scores are distributed, against the threshold, and what is flagged."""

from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard, VariableSort

from deploy.grafana.layout import any_of, dashboard, one_of
from deploy.grafana.panels import GREEN, RED, Query, Steps, heat_map, lines, number, states

OF = 'model="$model", version="$version", instance=~"$instance"'
FLEET = 'model="$model", version="$version"'
VARIABLES = (
    one_of("model", "Model", "label_values(ood_model_up, model)"),
    one_of("version", "Version", 'label_values(ood_model_up{model="$model"}, version)', VariableSort.NUMERICAL_DESC),
    any_of("instance", "Server", 'label_values(ood_model_up{model="$model", version="$version"}, instance)'),
)

NOW = (
    number(
        "Flagged",
        "Share of the window's images that are flagged, on the server with the most.",
        f"max(ood_window_flagged_ratio{{{OF}}})",
        unit=units.PercentUnit,
    ),
    number(
        "In distribution",
        "The share that is flagged in distribution, as the bundle states it.",
        f"max(ood_alpha{{{OF}}})",
        unit=units.PercentUnit,
    ),
    number(
        "Truly OOD",
        "Estimated share of the window's images that are out of distribution, on the server with the most.",
        f'max(ood_window_ood_share{{{OF}, bound="estimate"}})',
        unit=units.PercentUnit,
    ),
    number(
        "Detected",
        "The share of OOD images that is flagged, as measured when the bundle was made.",
        f"max(ood_detection_rate{{{OF}}})",
        unit=units.PercentUnit,
    ),
    number("Threshold", "Images whose verdict score is at or below it are flagged.", f"max(ood_threshold{{{OF}}})"),
    number(
        "Changed",
        "Servers on which the flag rate has risen for longer than chance explains (e-CUSUM).",
        f"sum(ood_shift{{{OF}}})",
        steps=Steps(red=1),
    ),
    number("Changes", "Times that it did in the last day.", f"sum(increase(ood_shifts_total{{{OF}}}[1d]))"),
    number("Window", "Images that the window's figures are of.", f"sum(ood_window_images{{{OF}}})"),
)
SCORES = (
    heat_map(
        "Negative energy",
        "Images a second by negative energy. Threshold of negative energy is one of the edges: what lies below it is "
        "flagged where negative energy is the verdict. In distribution the picture stays as it is.",
        f"sum by (le) (rate(ood_negative_energy_bucket{{{OF}}}[$__rate_interval]))",
    ),
    heat_map(
        "P-values",
        "Images a second by p-value. In distribution each step of 0.05 holds a twentieth of the images; drift shows as "
        "rows that grow dark.",
        f"sum by (le) (rate(ood_p_value_bucket{{{OF}}}[$__rate_interval]))",
        unit=units.Short,
    ),
    lines(
        "Negative energy and threshold",
        "Below each line lies that share of the images. When the 5 % line falls under the threshold, more than 5 % are "
        "flagged, where negative energy is the verdict.",
        (
            *(
                Query(
                    f"histogram_quantile({quantile}, sum by (le) "
                    f"(rate(ood_negative_energy_bucket{{{OF}}}[$__rate_interval])))",
                    f"{100 * quantile:g} %",
                )
                for quantile in (0.05, 0.25, 0.5, 0.75, 0.95)
            ),
            Query(f"max(ood_threshold{{{OF}}})", "threshold", dashed=True),
        ),
        least=None,
    ),
    lines(
        "Distance from calibration",
        "Kolmogorov-Smirnov distance of p-values from uniform: of each server's window against what it stays below in "
        "distribution, and of all servers' last hour at the histogram's edges.",
        (
            Query(f"ood_window_ks_distance{{{OF}}}", "{{instance}}"),
            Query(f"max(ood_window_ks_limit{{{OF}}})", "limit", dashed=True),
            Query(f"job_model:ood_p_value:ks_distance_rate1h{{{FLEET}}}", "all servers, an hour"),
        ),
    ),
)
RATE = (
    lines(
        "Flagged",
        "Share of images flagged: of all servers over 5 minutes and an hour, and of each server's window; dashed what "
        "is stated for images in distribution.",
        (
            Query(f"job_model:ood_images_flagged:ratio_rate5m{{{FLEET}}}", "5 minutes"),
            Query(f"job_model:ood_images_flagged:ratio_rate1h{{{FLEET}}}", "an hour"),
            Query(f"ood_window_flagged_ratio{{{OF}}}", "window of {{instance}}"),
            Query(f"max(ood_alpha{{{OF}}})", "in distribution", dashed=True),
        ),
        unit=units.PercentUnit,
    ),
    lines(
        "Truly OOD",
        "Estimated share of images that are out of distribution, with its 95 % interval, of each server's window; and "
        "of all servers' last hour, its interval dashed. Holds if they are detected as often as the bundle's OOD sets.",
        (
            Query(f"ood_window_ood_share{{{OF}}}", "{{bound}} {{instance}}"),
            Query(f"job_model:ood_share:estimate_rate1h{{{FLEET}}}", "all servers, an hour"),
            Query(f"job_model:ood_share:interval_rate1h{{{FLEET}}}", "{{bound}} all servers, an hour", dashed=True),
        ),
        unit=units.PercentUnit,
    ),
    lines(
        "Evidence of a change",
        "e-CUSUM of the flags: rises with each flag, falls with each image that is not, rings at its limit and until "
        "it is back at 0.",
        (
            Query(f"ood_cusum{{{OF}}}", "{{instance}}"),
            Query(f"max(ood_cusum_limit{{{OF}}})", "limit", dashed=True),
        ),
    ),
    states(
        "Flag rate",
        "Whether e-CUSUM says that it has changed.",
        Query(f"ood_shift{{{OF}}}", "{{instance}}"),
        {0: ("as in distribution", GREEN), 1: ("changed", RED)},
    ),
)
CLASSES = (
    lines(
        "Flagged by class",
        "Share of the images of each predicted class that are flagged; models of up to 100 classes.",
        (
            Query(
                f'sum by (class) (rate(ood_class_images_total{{{OF}, decision="ood"}}[5m])) '
                f"/ sum by (class) (rate(ood_class_images_total{{{OF}}}[5m]))",
                "{{class}}",
            ),
        ),
        unit=units.PercentUnit,
    ),
    lines(
        "Images by class",
        "Images a second by predicted class; models of up to 100 classes.",
        (Query(f"sum by (class) (rate(ood_class_images_total{{{OF}}}[5m]))", "{{class}}"),),
        unit="img/s",
    ),
)
CAPTURE = (
    lines(
        "Captured",
        "Images kept a minute, by kind; of all models.",
        (Query('60 * sum by (kind) (rate(ood_captured_images_total{instance=~"$instance"}[5m]))', "{{kind}}"),),
        unit="img/min",
        span=8,
    ),
    lines(
        "Lost",
        "Images a minute that were to be kept and were dropped, by reason; of all models.",
        (Query('60 * sum by (reason) (rate(ood_capture_dropped_total{instance=~"$instance"}[5m]))', "{{reason}}"),),
        unit="img/min",
        span=8,
    ),
    lines(
        "Disk",
        "Bytes that captured images take; of all models.",
        (Query('ood_capture_bytes{instance=~"$instance"}', "{{instance}}"),),
        unit=units.BytesIEC,
        span=8,
    ),
)


def model() -> Dashboard:
    """Return the dashboard."""
    return dashboard(
        "energy-ood-model",
        "Energy OOD: model",
        "How one model's scores are distributed against its threshold, and what is flagged. All of it assumes that "
        "images in distribution are exchangeable with the calibration set.",
        VARIABLES,
        (
            ("Now", NOW),
            ("Scores", SCORES),
            ("Flag rate", RATE),
            ("Classes", CLASSES),
            ("Captured images", CAPTURE),
        ),
    )
