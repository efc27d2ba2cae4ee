-- Jobs, their usage, and the virtual clock of the fair line. Times are Unix seconds in UTC.

CREATE TABLE job (
    id                     INTEGER PRIMARY KEY AUTOINCREMENT,
    state                  TEXT NOT NULL DEFAULT 'queued' CHECK (state IN
                           ('queued', 'running', 'rendered', 'delivered', 'failed', 'cancelled', 'undeliverable')),
    -- A card has two places: one picture is denoised while the one before it is decoded and saved.
    slot                   INTEGER CHECK (slot IN (0, 1)),
    -- where it came from
    interaction_id         INTEGER NOT NULL UNIQUE,
    interaction_token      TEXT,
    application_id         INTEGER NOT NULL,
    user_id                INTEGER NOT NULL,
    guild_id               INTEGER,
    channel_id             INTEGER NOT NULL,
    locale                 TEXT NOT NULL,
    attachment_limit_bytes INTEGER NOT NULL,
    parent_id              INTEGER REFERENCES job (id),
    -- what is drawn
    prompt                 TEXT NOT NULL,
    seed                   INTEGER NOT NULL CHECK (seed BETWEEN 0 AND 4294967295),
    steps                  INTEGER NOT NULL CHECK (steps > 0),
    guidance_scale         REAL NOT NULL,
    width                  INTEGER NOT NULL CHECK (width > 0),
    height                 INTEGER NOT NULL CHECK (height > 0),
    num_images             INTEGER NOT NULL CHECK (num_images BETWEEN 1 AND 4),
    -- its turn, in virtual time: zbot/policy.py
    cost                   INTEGER NOT NULL CHECK (cost > 0),
    start_tag              INTEGER NOT NULL,
    finish_tag             INTEGER NOT NULL,
    attempts               INTEGER NOT NULL DEFAULT 0,
    created_at             REAL NOT NULL,
    started_at             REAL,
    ended_at               REAL,
    -- what became of it
    gpu_s                  REAL,
    unused_prompt          TEXT NOT NULL DEFAULT '',
    error_code             TEXT,
    message_id             INTEGER,
    told_at                REAL,  -- when the channel showed the outcome
    deleted_at             REAL,
    CHECK ((state = 'running') = (slot IS NOT NULL))
) STRICT;

CREATE INDEX job_line ON job (start_tag, id) WHERE state = 'queued';
CREATE INDEX job_waiting_of_person ON job (user_id) WHERE state = 'queued';
CREATE INDEX job_person_finish ON job (user_id, finish_tag) WHERE state <> 'cancelled';
CREATE UNIQUE INDEX job_slot ON job (slot) WHERE state = 'running';
CREATE INDEX job_outbox ON job (id) WHERE told_at IS NULL AND state IN ('rendered', 'failed', 'cancelled');

-- One row per rendered job, written in the transaction that marks it rendered: counted exactly once.
CREATE TABLE usage (
    job_id     INTEGER PRIMARY KEY REFERENCES job (id),
    user_id    INTEGER NOT NULL,
    guild_id   INTEGER,
    channel_id INTEGER NOT NULL,
    pictures   INTEGER NOT NULL,
    pixels     INTEGER NOT NULL,  -- of all pictures together
    steps      INTEGER NOT NULL,
    gpu_s      REAL NOT NULL,
    wait_s     REAL NOT NULL,     -- from acceptance to the claim
    model      TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;

CREATE INDEX usage_of_person ON usage (user_id, created_at);

CREATE TABLE fair_clock (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    virtual_time INTEGER NOT NULL,
    served_until INTEGER NOT NULL
) STRICT;

INSERT INTO fair_clock VALUES (1, 0, 0);

-- Small facts to remember over a restart, such as which commands were synced.
CREATE TABLE fact (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
