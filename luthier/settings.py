"""Settings of every process, read once from the environment (`LUTHIER_...`).

Child processes get theirs through the environment of their parent, so one set of variables describes a whole
installation. `problems()` tells which values contradict each other; `luthier doctor` and every start use it.
"""

import ipaddress
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from luthier.addresses import AddressRules

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

DEFAULT_MODEL_ALLOW = (
    "Qwen/*,meta-llama/*,mistralai/*,HuggingFaceTB/*,google/*,microsoft/*,deepseek-ai/*,zai-org/*,THUDM/*,"
    "01-ai/*,ibm-granite/*,allenai/*,tiiuae/*,EleutherAI/*,unsloth/*,NousResearch/*"
)


class Settings(BaseSettings):
    """All settings, with defaults for one machine."""

    model_config = SettingsConfigDict(
        env_prefix="LUTHIER_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    data_dir: Path = Field(
        default=Path("~/.luthier"), description="Where everything lies that is not elsewhere"
    )
    database_url: str | None = Field(
        default=None, description="SQLAlchemy URL; default: SQLite in the data folder"
    )
    redis_url: SecretStr | None = Field(
        default=None, description="Broker for doorbells; default: none, agents poll"
    )
    reserve_bytes: int = Field(
        default=64 * MIB, ge=0, description="Held back on SQLite's disk, for when it is full"
    )
    check_seconds: float = Field(
        default=30, ge=0, description="SQLite's file is checked for so long at a start; 0 for not at all"
    )
    storage_dir: Path | None = Field(
        default=None, description="Files, checkpoints, artifacts; shared by all hosts"
    )
    s3_bucket: str | None = Field(
        default=None, description="Bucket for the same; default: none, they lie in the storage folder"
    )
    s3_endpoint_url: str | None = Field(
        default=None, description="URL of an S3 server; default: Amazon's, by the region"
    )
    s3_region: str | None = Field(
        default=None, description="Region of the bucket; default: as AWS tools find it"
    )
    s3_prefix: str | None = Field(default=None, description="Stands before every key in the bucket")
    s3_access_key_id: str | None = Field(
        default=None, description="Key for the bucket; default: as AWS tools find one"
    )
    s3_secret_access_key: SecretStr | None = Field(default=None, description="The secret part of that key")
    s3_presign: bool = Field(
        default=False, description="Send downloads to the bucket by signed addresses, not through the API"
    )
    s3_connect_timeout_seconds: float = Field(default=5, gt=0, description="Time for a connection to S3")
    s3_timeout_seconds: float = Field(
        default=20, gt=0, description="An S3 server that is silent for this long is not there"
    )
    s3_attempts: int = Field(default=3, ge=1, le=20, description="Tries of a call to S3 before it fails")
    model_dir: Path | None = Field(default=None, description="Base models of this host, a folder each")
    model_allow: str = Field(
        default=DEFAULT_MODEL_ALLOW, description="Hub ids that may be pulled: patterns, commas"
    )
    hub_token: SecretStr | None = Field(
        default=None, description="Token for gated models; the fetcher alone gets it"
    )

    host: str = Field(default="127.0.0.1", description="Address that the API listens on")
    port: int = Field(default=8000, ge=0, le=65535, description="Port that the API listens on")
    public_url: str | None = Field(
        default=None, description="Address that users call, where a proxy stands between"
    )
    trusted_proxies: str = Field(
        default="", description="Networks whose X-Forwarded-... headers are believed: commas"
    )
    allowed_hosts: str = Field(
        default="",
        description="Names that the API answers to, beside this machine's and the public URL's: commas, `*`",
    )
    cors_origins: str = Field(
        default="", description="Origins whose pages may call the API from a browser: commas; default: none"
    )
    requests_per_minute: int | None = Field(
        default=None, gt=0, description="Requests of one key a minute; default: no limit"
    )
    wrong_keys_per_minute: int = Field(
        default=60, ge=0, description="Wrong API keys from one address a minute; 0: no limit"
    )
    bootstrap_key: SecretStr | None = Field(
        default=None, description="The first key; default: one is made and shown"
    )
    secret_key: SecretStr | None = Field(
        default=None, description="Keys the hashes of API keys; default: drawn once into the data folder"
    )
    gpus: str = Field(default="auto", description="Devices by index or UUID with commas, `cpu`, or `auto`")
    trainer_threads: int = Field(default=1, ge=1, description="CPU threads of one training process")
    log_format: str = Field(default="console", pattern="^(console|json)$", description="console or json")

    max_upload_bytes: int = Field(default=8 * GIB, gt=0, description="Largest file, counted as it arrives")
    upload_idle_seconds: float = Field(
        default=60, gt=0, description="A body that pauses for this long is ended"
    )
    whole_check_bytes: int = Field(
        default=8 * MIB, gt=0, description="Up to this, files are checked in the upload"
    )
    max_body_bytes: int = Field(default=MIB, gt=0, description="Largest JSON body")
    max_log_bytes: int = Field(
        default=16 * MIB, gt=0, description="Kept of a run's output; the oldest goes first"
    )

    errand_wait_seconds: float = Field(
        default=5, gt=0, description="A call waits this long for a preview, then is told to ask again"
    )

    lease_seconds: float = Field(
        default=180, gt=0, description="A lease that is not renewed for this long is lost"
    )
    heartbeat_seconds: float = Field(default=15, gt=0, description="Time between renewals")
    self_fence_seconds: float = Field(
        default=150, gt=0, description="Without a renewal for this long, a run stops"
    )
    sweep_seconds: float = Field(default=15, gt=0, description="Time between looks for lost leases")
    poll_seconds: float = Field(
        default=0.5, gt=0, description="Time between looks for work, without a broker"
    )
    doorbell_poll_seconds: float = Field(default=30, gt=0, description="The same, with a broker")
    watch_seconds: float = Field(
        default=1, gt=0, description="Time between looks at a run's events and wishes"
    )
    stop_grace_seconds: float = Field(
        default=120, gt=0, description="From SIGTERM to SIGKILL of a training process"
    )
    start_timeout_seconds: float = Field(
        default=900, gt=0, description="A child that says nothing so long is ended"
    )
    cancel_grace_seconds: float = Field(
        default=20, gt=0, description="From the wish to cancel to a second SIGTERM, and from that to SIGKILL"
    )
    unkillable_seconds: float = Field(
        default=60, gt=0, description="A process that outlives SIGKILL so long sets its device aside"
    )
    hang_seconds: float = Field(
        default=900, gt=0, description="A training run that makes no step for so long hangs"
    )
    max_host_memory_bytes: int | None = Field(
        default=None, gt=0, description="Host memory of one child; default: no limit"
    )
    labels: str = Field(default="", description="What jobs may ask of this host's workers: words, commas")

    max_infra_restarts: int = Field(
        default=5, ge=1, description="Runs lost to machines without a new checkpoint before a job fails"
    )
    max_user_failures: int = Field(
        default=5, ge=1, description="Runs that failed for a passing reason before a job fails"
    )
    max_deaths: int = Field(
        default=3, ge=1, description="Deaths in a row without a new checkpoint that quarantine a job"
    )

    max_queued_jobs: int = Field(
        default=10_000, ge=1, description="Training jobs of one project that have not ended"
    )
    max_running_jobs: int | None = Field(
        default=None, ge=1, description="Training jobs of one project that run at once; default: no limit"
    )
    max_storage_bytes: int | None = Field(
        default=None, gt=0, description="Storage of one project; default: no limit"
    )

    low_disk_bytes: int = Field(
        default=256 * MIB, gt=0, description="Below it nothing new is taken and jobs wait for room"
    )
    enough_disk_bytes: int = Field(
        default=512 * MIB, gt=0, description="From here on, jobs that waited for room go on"
    )
    keep_checkpoints_days: float = Field(
        default=30, gt=0, description="Checkpoints of ended jobs are kept for so long"
    )
    keep_prepared_days: float = Field(
        default=30, gt=0, description="Prepared data that no job used for so long goes"
    )
    keep_audit_days: float = Field(default=365, gt=0, description="The audit log is kept for so long")
    keep_orphans_hours: float = Field(
        default=24, gt=0, description="What lies in storage without a row is kept for so long"
    )
    keep_deliveries_days: float = Field(
        default=30, gt=0, description="The log of webhook deliveries is kept for so long"
    )
    webhook_allow_private: str = Field(
        default="", description="Networks that webhooks may call though they are not public: CIDRs, or `all`"
    )
    webhook_ports: str = Field(
        default="443,8443", description="Ports that webhooks may call at public addresses: numbers, commas"
    )
    webhook_timeout_seconds: float = Field(
        default=15, gt=0, le=30, description="A webhook's target that has not answered by then has failed"
    )
    storage_patience_seconds: float = Field(
        default=600, gt=0, description="A run that has ended waits this long for a storage that is away"
    )

    @cached_property
    def data(self) -> Path:
        """The data folder, absolute."""
        return self.data_dir.expanduser().resolve()

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data / 'luthier.db'}"

    @property
    def database_file(self) -> Path:
        """Where SQLite's file lies; meaningless with Postgres."""
        return Path(self.database.partition("///")[2].partition("?")[0]).absolute()

    @property
    def storage(self) -> Path:
        return (self.storage_dir or self.data / "storage").expanduser().resolve()

    @property
    def models(self) -> Path:
        return (self.model_dir or self.data / "models").expanduser().resolve()

    @property
    def runs(self) -> Path:
        return self.data / "runs"

    @property
    def allowed_models(self) -> tuple[str, ...]:
        return items(self.model_allow)

    @property
    def proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """Raises ValueError for what is no network."""
        return tuple(ipaddress.ip_network(text) for text in items(self.trusted_proxies))

    @property
    def root_path(self) -> str:
        """The path of the public URL, below which users find the API; empty for none."""
        return urlsplit(self.public_url or "").path.rstrip("/")

    @property
    def webhook_rules(self) -> AddressRules:
        return AddressRules.parse(self.webhook_allow_private, self.webhook_ports)

    def problems(self) -> list[str]:
        """Values that contradict each other, in words; empty when all is well."""
        found = []
        if not self.heartbeat_seconds * 5 <= self.self_fence_seconds:
            found.append("LUTHIER_SELF_FENCE_SECONDS must be at least 5 x LUTHIER_HEARTBEAT_SECONDS")
        if not self.self_fence_seconds < self.lease_seconds:
            found.append("LUTHIER_SELF_FENCE_SECONDS must be less than LUTHIER_LEASE_SECONDS")
        if not self.low_disk_bytes < self.enough_disk_bytes:
            found.append("LUTHIER_ENOUGH_DISK_BYTES must be more than LUTHIER_LOW_DISK_BYTES")
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            found.append(
                "LUTHIER_S3_ACCESS_KEY_ID and LUTHIER_S3_SECRET_ACCESS_KEY belong together: set both"
            )
        if self.s3_bucket is not None and self.storage_dir is not None:
            found.append("LUTHIER_S3_BUCKET and LUTHIER_STORAGE_DIR are both set: unset one")
        if self.s3_bucket is None and (self.s3_endpoint_url or self.s3_prefix or self.s3_presign):
            found.append("LUTHIER_S3_... is set without LUTHIER_S3_BUCKET: set that, too")
        try:
            AddressRules.parse(self.webhook_allow_private, self.webhook_ports)
        except ValueError as error:
            found.append(f"LUTHIER_WEBHOOK_ALLOW_PRIVATE or LUTHIER_WEBHOOK_PORTS cannot be read: {error}")
        if not is_loopback(self.host) and self.public_url is None:
            found.append(
                "LUTHIER_HOST is not loopback: set LUTHIER_PUBLIC_URL to the address that users call"
            )
        return [*found, *self._problems_of_addresses()]

    def _problems_of_addresses(self) -> list[str]:
        found = []
        url = urlsplit(self.public_url or "http://localhost")
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            found.append("LUTHIER_PUBLIC_URL is no address: write it as https://name or https://name/path")
        try:
            _ = self.proxy_networks
        except ValueError as error:
            found.append(f"LUTHIER_TRUSTED_PROXIES: {error}: list networks such as 10.0.0.0/8")
        for origin in items(self.cors_origins):
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or parts.path or not parts.hostname:
                found.append("LUTHIER_CORS_ORIGINS: list origins such as https://name, without a path")
        return found


def items(text: str) -> tuple[str, ...]:
    """The items of a setting that lists them with commas."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and reached from nowhere else."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_everywhere(host: str) -> bool:
    """Whether to listen on a host is to listen on all addresses of the machine."""
    return host in ("0.0.0.0", "::", "")  # noqa: S104, compared with and not bound to
