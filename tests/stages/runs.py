"""What two runs are compared by."""


def files(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted((workdir / "distilled").rglob("*"))
        if path.is_file()
    }


def without_times(results):
    records = [
        {k: v for k, v in record.items() if k != "seconds"}
        for record in results["records"]
    ]
    kept = {k: v for k, v in results.items() if k not in ("seconds", "command")}
    return {**kept, "records": records}
