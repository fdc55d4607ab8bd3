"""`python -m deploy.grafana`: write the dashboards to helm/resforge/dashboards, and remove what is no longer built."""

from deploy.grafana.build import FOLDER, documents


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    built = documents()
    for path in FOLDER.glob("*.json"):
        if path.name not in built:
            path.unlink()
    for name, text in built.items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)


if __name__ == "__main__":
    main()
