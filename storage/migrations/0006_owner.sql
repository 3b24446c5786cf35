-- The last turn of this catalogue's mark in the object store; see orchestrator/documents/ownership.py.
CREATE TABLE owner (turn BIGINT NOT NULL);
