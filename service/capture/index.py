"""The index of captured images: Parquet, a file a segment, a row an image."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from service.errors import CaptureError

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("kind", pa.string()),
        ("model", pa.string()),
        ("sha256", pa.string()),
        ("time", pa.timestamp("us", "UTC")),
        ("request_id", pa.string()),
        ("class_id", pa.int32()),
        ("class_name", pa.string()),
        ("confidence", pa.float64()),
        ("negative_energy", pa.float64()),
        ("score", pa.string()),
        ("p_value", pa.float64()),
        ("is_ood", pa.bool_()),
        ("sent_as", pa.string()),
        ("encoding", pa.string()),
        ("bytes", pa.int64()),
    ]
)
pa.array([], pa.string())  # the first imports pandas where it is there: seconds, that images would wait for


@dataclass(frozen=True)
class Row:
    """One image: the fields are the index's columns.

    `file` lies beside the index. `model` is `name@version`, `sha256` its bundle's. p-value and flag are by `score`.
    `sent_as` is `file` or `pixels`; `encoding` as `model_store.images.encoding` tells of the file.
    """

    file: str
    kind: str
    model: str
    sha256: str
    time: datetime
    request_id: str
    class_id: int
    class_name: str
    confidence: float
    negative_energy: float
    score: str
    p_value: float
    is_ood: bool
    sent_as: str
    encoding: str
    bytes: int


def to_parquet(rows: Sequence[Row]) -> bytes:
    """Return a Parquet file of the rows, as small as it gets."""
    columns = zip(*map(astuple, rows), strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    file = pa.BufferOutputStream()  # a file of Python's would take the interpreter back some forty times
    pq.write_table(table, file, compression="zstd", write_statistics=False, store_schema=False)
    return bytes(file.getvalue())


def read_index(path: Path) -> list[Row]:
    """Read one segment's rows.

    Raises:
        CaptureError: it is no such file, or damaged.
        FileNotFoundError: it is gone.
    """
    try:
        with path.open("rb") as file:
            table = pq.read_table(file, columns=[field.name for field in fields(Row)])
            return [Row(**row) for row in table.cast(SCHEMA).to_pylist()]
    except FileNotFoundError:
        raise
    except (OSError, TypeError, pa.ArrowException) as err:
        raise CaptureError(f"{path} is no index of captured images: {str(err)[:200]}") from err
