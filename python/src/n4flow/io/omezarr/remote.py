"""Stores at addresses, read by tensorstore: metadata, and which files there are.

Web servers do not list what they hold, and tensorstore reads an absent chunk as the fill value. So whether a file is
there is asked for each file, by its first byte, which also tells its entity tag or generation.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from n4flow.compute.threads import thread_limit
from n4flow.errors import InputError
from n4flow.io.address import Address
from n4flow.io.omezarr.tensorstore_use import reason_of, shared_context, tensorstore_runs

REQUESTS = 64  # under way at a time
NOTHING: tuple[str, ...] = ()
WHOLE = "was ignored by server"  # of a server that sends whole files, whatever part is asked for


def specification(address: Address) -> Any:
    """Return the key-value store of tensorstore below an address.

    The endpoint of another S3 service than Amazon's is taken from the environment, as Amazon's own tools do.
    """
    scheme, _, rest = str(address).partition("://")
    if scheme != "s3":
        return f"{address}/"
    bucket, _, path = rest.partition("/")
    place: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": f"{path}/"}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        place.update(endpoint=endpoint, aws_region=region)
    if "AWS_ACCESS_KEY_ID" in os.environ:  # No look for files of credentials, which would be logged.
        place["aws_credentials"] = {"type": "environment"}
    return place


class RemoteStore(Store):
    """The files below an address, for zarr-python: read only."""

    supports_writes = supports_deletes = supports_listing = False

    def __init__(self, address: Address) -> None:
        import tensorstore

        if not tensorstore_runs():
            msg = f"{address} cannot be read in a process forked from one that has read a store; start it by spawn"
            raise InputError(msg)
        super().__init__(read_only=True)
        self.address = address
        self.files = tensorstore.KvStore.open(specification(address), context=shared_context(thread_limit())).result()

    def __str__(self) -> str:
        return str(self.address)

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and self.address == other.address

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a file or a part of it; None where there is none."""
        part = None
        if isinstance(byte_range, RangeByteRequest):
            part = slice(byte_range.start, byte_range.end)
        elif isinstance(byte_range, OffsetByteRequest):
            part = slice(byte_range.offset, None)
        elif isinstance(byte_range, SuffixByteRequest):
            part = slice(-byte_range.suffix, None)
        try:
            found = await self.files.read(key, byte_range=part)
        except (ValueError, RuntimeError) as error:
            msg = f"{self.address}/{key}: {reason_of(error)}"
            raise OSError(msg) from error
        return prototype.buffer.from_bytes(found.value) if found.state == "value" else None

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether there is a file."""
        return next(states(self, [key])) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Name nothing: web servers cannot."""
        for key in NOTHING:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Name nothing: web servers cannot."""
        for key in NOTHING:
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Name nothing: web servers cannot."""
        for key in NOTHING:
            yield key


def states(store: RemoteStore, keys: Iterable[str]) -> Any:
    """Yield for each key the entity tag or generation of its file, None where there is none; several at a time.

    Raises
    ------
    InputError
        The server does not answer, or refuses.
    """
    waiting: deque[tuple[str, Any]] = deque()

    def answer() -> bytes | None:
        key, future = waiting.popleft()
        try:
            found = future.result()
        except (ValueError, RuntimeError, NotImplementedError) as error:
            if WHOLE in str(error):
                return b"whole"
            msg = f"{store.address}/{key} cannot be read: {reason_of(error)}; check the address, access and the network"
            raise InputError(msg) from error
        return None if found.state != "value" else bytes(found.stamp.generation)

    for key in keys:
        waiting.append((key, store.files.read(key, byte_range=slice(0, 1))))
        if len(waiting) == REQUESTS:
            yield answer()
    while waiting:
        yield answer()
