"""Run folders with made-up curves, written as TensorBoard's logger writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.record_writer import RecordWriter

START = 1_700_000_000.0

Curves = Mapping[str, Mapping[int, float]]
WriteRun = Callable[..., Path]


def scalar(tag: str, step: int, value: float, time: float) -> bytes:
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    event = Event(wall_time=time, step=step, summary=summary)
    return bytes(event.SerializeToString())


def text(tag: str, step: int, content: str, time: float) -> bytes:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype="DT_STRING", string_val=[content.encode()])
    value = Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)
    event = Event(wall_time=time, step=step, summary=Summary(value=[value]))
    return bytes(event.SerializeToString())


def append(file: Path, records: Sequence[bytes]) -> None:
    with file.open("ab") as stream:
        writer = RecordWriter(stream)
        for record in records:
            writer.write(record)
        writer.flush()


def healthy(steps: int = 400, every: int = 100, log: int = 10) -> dict[str, dict[int, float]]:
    """Curves of a run that learns: from 6 nats down to 2."""
    train = {step: 2 + 4 * 0.99**step for step in range(log, steps + 1, log)}
    val = {step: 2.1 + 4 * 0.99**step for step in range(0, steps + 1, every)}
    return {
        "train_loss": train,
        "lr": {step: 0.01 * (1 - step / (steps + 1)) for step in train},
        "tokens_seen": {step: 512.0 * step for step in train},
        "tokens_per_sec": dict.fromkeys(train, 1000.0),
        "val_loss": val,
        "val_ppl": {step: 2.718 ** min(value, 700) for step, value in val.items()},
        "val_bpb": {step: value / 2 for step, value in val.items()},
    }
