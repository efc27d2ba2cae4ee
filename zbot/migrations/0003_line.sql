-- The line with all that is counted in it, so that a place is told without reading a single job. `state` is among
-- the columns because SQLite 3.40 does not see that the index's own condition has answered for it.

DROP INDEX job_line;
CREATE INDEX job_line ON job (start_tag, id, cost, user_id, state) WHERE state = 'queued';
DROP INDEX job_waiting_of_person;
CREATE INDEX job_waiting_of_person ON job (user_id, state) WHERE state = 'queued';
