from pathlib import Path


class Snapshot:
    @classmethod
    def of(cls, folder: Path) -> "Snapshot":
        return cls()

    def changes(self):
        return []
