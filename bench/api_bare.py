"""The least that the same framework and server can do: `python bench/api_bare.py PORT FOLDER`.

A route with a small answer, as a coroutine and as a function in a thread; files of a folder; and an upload
that is written to a file and to nothing else.
"""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse

_OBJECT = {"id": "ftjob-000000000000000000000000", "object": "fine_tuning.job", "status": "queued"}


def create_app(folder: Path) -> FastAPI:
    app = FastAPI()

    @app.get("/bare")
    async def bare() -> dict[str, str]:
        return _OBJECT

    @app.get("/threaded")
    def threaded() -> dict[str, str]:
        return _OBJECT

    @app.get("/files/{name}")
    def file(name: str) -> FileResponse:
        return FileResponse(folder / Path(name).name)

    @app.put("/files/{name}")
    async def upload(name: str, request: Request) -> dict[str, str]:
        with (folder / Path(name).name).open("wb") as output:
            async for chunk in request.stream():
                output.write(chunk)
        return _OBJECT

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(Path(sys.argv[2])), port=int(sys.argv[1]), access_log=False, log_level="warning")
