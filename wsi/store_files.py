"""The files of a store as zarr-python sees them, of which nothing that was changed or that never ends is read."""

import asyncio

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.metadata import metadata_is_signed, read_regular_file

__all__ = ["StoreFiles"]


class StoreFiles(LocalStore):
    """A folder for zarr-python to read: metadata are compared with their checksum, pipes and devices refused."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a file, None where there is none.

        Raises:
            StoreError: if it is no file, or is metadata that were changed after they were written.
        """
        data = await asyncio.to_thread(self._read, key)
        if data is None:
            return None
        if byte_range is not None:
            return await super().get(key, prototype, byte_range)
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    def _read(self, key: str) -> bytes | None:
        try:
            data = read_regular_file(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(
                f"store '{self.root.name}': {key} cannot be read ({error.strerror}); see simtriplet check --repair"
            ) from error
        if key.endswith("zarr.json"):
            try:
                metadata_is_signed(data)
            except ValueError as error:
                raise StoreError(f"store '{self.root.name}': {key} {error}; see simtriplet check --repair") from error
        return data
