from qsg.pb import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_NONE: _ClassVar[FrameType]
    FRAME_BIND: _ClassVar[FrameType]
    FRAME_BOUND: _ClassVar[FrameType]
    FRAME_REFUSED: _ClassVar[FrameType]
    FRAME_BATCH: _ClassVar[FrameType]
    FRAME_PART: _ClassVar[FrameType]
    FRAME_CONFIRM: _ClassVar[FrameType]
    FRAME_PROGRESS: _ClassVar[FrameType]
    FRAME_HEARTBEAT: _ClassVar[FrameType]
    FRAME_BEAT_BACK: _ClassVar[FrameType]
    FRAME_CLOSE: _ClassVar[FrameType]
    FRAME_PING: _ClassVar[FrameType]
    FRAME_PONG: _ClassVar[FrameType]
    FRAME_QUERY: _ClassVar[FrameType]
FRAME_NONE: FrameType
FRAME_BIND: FrameType
FRAME_BOUND: FrameType
FRAME_REFUSED: FrameType
FRAME_BATCH: FrameType
FRAME_PART: FrameType
FRAME_CONFIRM: FrameType
FRAME_PROGRESS: FrameType
FRAME_HEARTBEAT: FrameType
FRAME_BEAT_BACK: FrameType
FRAME_CLOSE: FrameType
FRAME_PING: FrameType
FRAME_PONG: FrameType
FRAME_QUERY: FrameType

class ChannelFrame(_message.Message):
    __slots__ = ("frame",)
    FRAME_FIELD_NUMBER: _ClassVar[int]
    frame: bytes
    def __init__(self, frame: _Optional[bytes] = ...) -> None: ...

class Parameters(_message.Message):
    __slots__ = ("version", "batch_messages", "batch_bytes", "batch_window", "message_bytes_max", "heartbeat_ms", "sequence_wrap")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BATCH_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    BATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    BATCH_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_WRAP_FIELD_NUMBER: _ClassVar[int]
    version: int
    batch_messages: int
    batch_bytes: int
    batch_window: int
    message_bytes_max: int
    heartbeat_ms: int
    sequence_wrap: int
    def __init__(self, version: _Optional[int] = ..., batch_messages: _Optional[int] = ..., batch_bytes: _Optional[int] = ..., batch_window: _Optional[int] = ..., message_bytes_max: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ..., sequence_wrap: _Optional[int] = ...) -> None: ...

class Bind(_message.Message):
    __slots__ = ("channel", "sender", "receiver", "stream", "epoch", "instance", "bound_before", "reset_to", "sequence", "parameters", "fence_only")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    BOUND_BEFORE_FIELD_NUMBER: _ClassVar[int]
    RESET_TO_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FENCE_ONLY_FIELD_NUMBER: _ClassVar[int]
    channel: str
    sender: str
    receiver: str
    stream: bytes
    epoch: int
    instance: int
    bound_before: bool
    reset_to: int
    sequence: int
    parameters: Parameters
    fence_only: bool
    def __init__(self, channel: _Optional[str] = ..., sender: _Optional[str] = ..., receiver: _Optional[str] = ..., stream: _Optional[bytes] = ..., epoch: _Optional[int] = ..., instance: _Optional[int] = ..., bound_before: _Optional[bool] = ..., reset_to: _Optional[int] = ..., sequence: _Optional[int] = ..., parameters: _Optional[_Union[Parameters, _Mapping]] = ..., fence_only: _Optional[bool] = ...) -> None: ...

class Bound(_message.Message):
    __slots__ = ("receiver", "member", "record", "parameters", "epoch")
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    receiver: str
    member: str
    record: _records_pb2.Progress
    parameters: Parameters
    epoch: int
    def __init__(self, receiver: _Optional[str] = ..., member: _Optional[str] = ..., record: _Optional[_Union[_records_pb2.Progress, _Mapping]] = ..., parameters: _Optional[_Union[Parameters, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "detail", "epoch_seen", "instance_seen")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_SEEN_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_SEEN_FIELD_NUMBER: _ClassVar[int]
    reason: int
    detail: str
    epoch_seen: int
    instance_seen: int
    def __init__(self, reason: _Optional[int] = ..., detail: _Optional[str] = ..., epoch_seen: _Optional[int] = ..., instance_seen: _Optional[int] = ...) -> None: ...

class WireSegment(_message.Message):
    __slots__ = ("priority", "create_revision", "suffix", "first_index", "header", "bodies", "indexes", "last_index")
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CREATE_REVISION_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BODIES_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    priority: int
    create_revision: int
    suffix: bytes
    first_index: int
    header: bytes
    bodies: bytes
    indexes: _containers.RepeatedScalarFieldContainer[int]
    last_index: int
    def __init__(self, priority: _Optional[int] = ..., create_revision: _Optional[int] = ..., suffix: _Optional[bytes] = ..., first_index: _Optional[int] = ..., header: _Optional[bytes] = ..., bodies: _Optional[bytes] = ..., indexes: _Optional[_Iterable[int]] = ..., last_index: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("number", "luwid", "first_sequence", "messages", "segments")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LUWID_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    luwid: str
    first_sequence: int
    messages: int
    segments: _containers.RepeatedCompositeFieldContainer[WireSegment]
    def __init__(self, number: _Optional[int] = ..., luwid: _Optional[str] = ..., first_sequence: _Optional[int] = ..., messages: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[WireSegment, _Mapping]]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("stage", "index", "chunks", "data", "destination")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    stage: bytes
    index: int
    chunks: int
    data: bytes
    destination: _records_pb2.Destination
    def __init__(self, stage: _Optional[bytes] = ..., index: _Optional[int] = ..., chunks: _Optional[int] = ..., data: _Optional[bytes] = ..., destination: _Optional[_Union[_records_pb2.Destination, _Mapping]] = ...) -> None: ...

class Confirm(_message.Message):
    __slots__ = ("number", "luwid", "sequence", "dead_letter_used")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LUWID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DEAD_LETTER_USED_FIELD_NUMBER: _ClassVar[int]
    number: int
    luwid: str
    sequence: int
    dead_letter_used: bool
    def __init__(self, number: _Optional[int] = ..., luwid: _Optional[str] = ..., sequence: _Optional[int] = ..., dead_letter_used: _Optional[bool] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("number", "batch", "note")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    number: int
    batch: int
    note: str
    def __init__(self, number: _Optional[int] = ..., batch: _Optional[int] = ..., note: _Optional[str] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: int
    detail: str
    def __init__(self, reason: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("data", "channel", "sender")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    channel: str
    sender: str
    def __init__(self, data: _Optional[bytes] = ..., channel: _Optional[str] = ..., sender: _Optional[str] = ...) -> None: ...
