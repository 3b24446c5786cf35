-- Times are seconds since 1970. `serial` orders what was created in the same second. A look-up goes by one indexed
-- column alone: with a second condition beside it DuckDB scans the table.
CREATE TABLE files (
    id VARCHAR PRIMARY KEY,
    tenant VARCHAR NOT NULL,
    filename VARCHAR NOT NULL,
    purpose VARCHAR NOT NULL,
    bytes BIGINT NOT NULL,
    content_type VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    created_unix BIGINT NOT NULL,
    expires_unix BIGINT,
    serial BIGINT NOT NULL
);
CREATE TABLE uploads (
    id VARCHAR PRIMARY KEY,
    tenant VARCHAR NOT NULL,
    filename VARCHAR NOT NULL,
    purpose VARCHAR NOT NULL,
    bytes BIGINT NOT NULL,
    content_type VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    created_unix BIGINT NOT NULL,
    expires_unix BIGINT NOT NULL,
    file_expires_after_s BIGINT,
    file_id VARCHAR,
    serial BIGINT NOT NULL
);
CREATE TABLE parts (
    id VARCHAR PRIMARY KEY,
    upload VARCHAR NOT NULL,
    bytes BIGINT NOT NULL,
    created_unix BIGINT NOT NULL,
    serial BIGINT NOT NULL
);
CREATE TABLE stores (
    id VARCHAR PRIMARY KEY,
    tenant VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    created_unix BIGINT NOT NULL,
    last_active_unix BIGINT NOT NULL,
    description VARCHAR,
    metadata VARCHAR NOT NULL,        -- JSON
    expires_after_days BIGINT,
    embedder VARCHAR NOT NULL,
    dimension BIGINT NOT NULL,
    serial BIGINT NOT NULL
);
CREATE TABLE store_files (
    store VARCHAR NOT NULL,
    file VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    filename VARCHAR NOT NULL,
    entry BIGINT PRIMARY KEY,
    status VARCHAR NOT NULL,
    created_unix BIGINT NOT NULL,
    attributes VARCHAR NOT NULL,      -- JSON
    chunking VARCHAR NOT NULL,        -- JSON
    batch VARCHAR,
    last_error VARCHAR,               -- JSON
    usage_bytes BIGINT NOT NULL,
    chunks BIGINT NOT NULL,
    passages VARCHAR NOT NULL,
    serial BIGINT NOT NULL
);
CREATE INDEX store_files_file ON store_files (file);
CREATE TABLE batches (
    id VARCHAR PRIMARY KEY,
    store VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    created_unix BIGINT NOT NULL,
    cancelled BOOLEAN NOT NULL,
    serial BIGINT NOT NULL
);
CREATE TABLE embedders (name VARCHAR NOT NULL);                           -- every one that a store ever had
CREATE TABLE garbage (key VARCHAR NOT NULL, serial BIGINT NOT NULL);      -- objects that nothing names any more
CREATE TABLE doubts (kind VARCHAR NOT NULL, tenant VARCHAR NOT NULL, id VARCHAR NOT NULL);
CREATE TABLE filled (done BOOLEAN NOT NULL);                                -- empty until the first refill
CREATE SEQUENCE serials;

-- Where items stood in their listings that were removed: a cursor that names one goes on from there.
CREATE TABLE departed (
    listing VARCHAR NOT NULL,
    id VARCHAR NOT NULL,
    created_unix BIGINT NOT NULL,
    serial BIGINT NOT NULL,
    number BIGINT NOT NULL            -- in order of removal
);
CREATE INDEX departed_by_id ON departed (id);
