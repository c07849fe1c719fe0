-- Version 1 of the state. Times are milliseconds since the epoch; JSON columns hold the wire form.
CREATE TABLE sessions (
    sid INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    agent_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    label TEXT UNIQUE,
    display_name TEXT,
    created_via TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    last_interaction_at INTEGER,
    status TEXT,
    started_at INTEGER,
    ended_at INTEGER,
    last_run_id TEXT,
    last_run_error TEXT,
    last_preview TEXT,
    last_seq INTEGER NOT NULL DEFAULT 0,
    reset_seq INTEGER NOT NULL DEFAULT 0,
    model TEXT,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    total_tokens INTEGER NOT NULL DEFAULT 0,
    spawned_by TEXT,
    spawn_depth INTEGER NOT NULL DEFAULT 0,
    lifecycle_revision TEXT NOT NULL
) STRICT;
CREATE INDEX sessions_updated ON sessions (updated_at DESC);
CREATE INDEX sessions_spawned_by ON sessions (spawned_by) WHERE spawned_by IS NOT NULL;

-- Append-only; a session's transcript lies together.
CREATE TABLE messages (
    sid INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    id TEXT NOT NULL,
    run_id TEXT,
    body TEXT NOT NULL,
    PRIMARY KEY (sid, seq)
) STRICT, WITHOUT ROWID;

-- The key of a run is the caller's idempotency key; its input waits here until it gets its place in the transcript.
CREATE TABLE runs (
    n INTEGER PRIMARY KEY, -- the order of acceptance
    id TEXT NOT NULL UNIQUE,
    sid INTEGER NOT NULL,
    state TEXT NOT NULL,
    source TEXT NOT NULL,
    submission TEXT NOT NULL,
    digest BLOB NOT NULL,
    accepted_at INTEGER NOT NULL,
    message_seq INTEGER,
    merged_into TEXT,
    terminal TEXT
) STRICT;
CREATE INDEX runs_open ON runs (n) WHERE state IN ('queued', 'running');
CREATE INDEX runs_merged ON runs (merged_into) WHERE merged_into IS NOT NULL;
CREATE INDEX runs_age ON runs (accepted_at);

CREATE TABLE cron_jobs (
    id TEXT PRIMARY KEY,
    job TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row a slot, claimed before the slot runs: at most once per (job, slot). A slot without a time was asked for by
-- hand. One that was skipped may still be claimed, when the wall clock went back.
CREATE TABLE cron_receipts (
    run_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL,
    slot_ms INTEGER,
    claimed_at INTEGER NOT NULL,
    finished_at INTEGER,
    status TEXT,
    entry TEXT,
    UNIQUE (job_id, slot_ms)
) STRICT, WITHOUT ROWID;
CREATE INDEX cron_receipts_open ON cron_receipts (job_id) WHERE finished_at IS NULL;
CREATE INDEX cron_receipts_age ON cron_receipts (finished_at);

-- What a session is to be told with its next turn.
CREATE TABLE system_events (
    id INTEGER PRIMARY KEY,
    session_key TEXT NOT NULL,
    text TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX system_events_session ON system_events (session_key);

-- `record` holds the device's tokens as well.
CREATE TABLE devices (
    device_id TEXT PRIMARY KEY,
    record TEXT NOT NULL,
    approved_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE pairing_requests (
    request_id TEXT PRIMARY KEY,
    device_id TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE kv (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
