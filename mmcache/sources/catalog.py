"""The schemas of a source by the name of their collection."""

from __future__ import annotations

from collections.abc import Iterable

from ..schema import AnySchema, Schema

__all__ = ["Catalog"]


class Catalog(dict[str, AnySchema]):
    """Collection name -> Schema; asking for another name is a ValueError that lists those there are."""

    def __init__(self, schemas: Iterable[AnySchema], *, key: str | None = None) -> None:
        """key: of the schemas that name none."""
        super().__init__()
        for schema in schemas:
            if not isinstance(schema, Schema):
                raise TypeError(f"a source takes Schema objects, not {type(schema).__name__}: {schema!r}")
            if schema.name in self:
                raise ValueError(
                    f"two schemas are named {schema.name!r}; a collection's name is unique in a source: "
                    f"Schema('another', table={(schema.table or schema.name)!r}) reads the same table"
                )
            self[schema.name] = schema if key is None else schema.resolved(key)
        if not self:
            raise TypeError("a source needs at least one Schema, to know the key and the collection's name")

    def __missing__(self, name: str) -> AnySchema:
        raise ValueError(f"the source has no collection {name!r}; it has: {', '.join(self)}")
