-- A shipping company for ships.toml: 3 fleets, 12 vessels, crew with their record, maintenance, manuals per class of ships.
-- Everything is computed, so two runs on one day give the same rows; dates are counted from today, since the definition has a
-- window.

CREATE TABLE port(code TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL);
CREATE TABLE rank(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE fleet(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE ship_class(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE vessel(imo TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, fleet_id INTEGER REFERENCES fleet(id), class_id INTEGER REFERENCES ship_class(id), home_port TEXT REFERENCES port(code));
CREATE TABLE crew_member(id INTEGER PRIMARY KEY, name TEXT NOT NULL, rank_id INTEGER REFERENCES rank(id), born TEXT);
CREATE TABLE certificate(crew_id INTEGER NOT NULL REFERENCES crew_member(id), number TEXT NOT NULL, expires TEXT, PRIMARY KEY(crew_id, number)) WITHOUT ROWID;
CREATE TABLE assignment(id INTEGER PRIMARY KEY, crew_id INTEGER NOT NULL REFERENCES crew_member(id), imo TEXT NOT NULL REFERENCES vessel(imo), status TEXT NOT NULL, since TEXT);
CREATE TABLE maintenance_job(id INTEGER PRIMARY KEY, imo TEXT NOT NULL REFERENCES vessel(imo), title TEXT NOT NULL, done_at TEXT);
CREATE TABLE job_part(job_id INTEGER NOT NULL REFERENCES maintenance_job(id), position INTEGER NOT NULL, part TEXT NOT NULL, quantity INTEGER NOT NULL, PRIMARY KEY(job_id, position));
CREATE TABLE job_reading(id INTEGER PRIMARY KEY, job_id INTEGER NOT NULL REFERENCES maintenance_job(id), value REAL);
-- A page belongs to an edition of a manual, an edition may be issued to several classes. So there is no foreign key between
-- the two: (manual_id, edition) is not unique in manual_issue. The rule joins them all the same.
CREATE TABLE manual_page(manual_id TEXT NOT NULL, edition INTEGER NOT NULL, page INTEGER NOT NULL, body BLOB, PRIMARY KEY(manual_id, edition, page));
CREATE TABLE manual_issue(manual_id TEXT NOT NULL, edition INTEGER NOT NULL, class_id INTEGER NOT NULL REFERENCES ship_class(id), PRIMARY KEY(manual_id, edition, class_id));
CREATE TABLE noon_report(id TEXT PRIMARY KEY NOT NULL, imo TEXT NOT NULL REFERENCES vessel(imo), at TEXT NOT NULL, latitude REAL, longitude REAL, next_port TEXT REFERENCES port(code));

BEGIN;
CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) SELECT i FROM n;

INSERT INTO port VALUES ('DEHAM', 'Hamburg'), ('NLRTM', 'Rotterdam'), ('SGSIN', 'Singapore'), ('BRSSZ', 'Santos'), ('CIABJ', 'Abidjan');
INSERT INTO rank VALUES (1, 'Master'), (2, 'Chief Engineer'), (3, 'Second Officer'), (4, 'Able Seaman'), (5, 'Cook');
INSERT INTO fleet VALUES (1, 'Container'), (2, 'Bulk'), (3, 'Tanker');
INSERT INTO ship_class VALUES (1, 'Feeder'), (2, 'Panamax'), (3, 'Handymax'), (4, 'Aframax');
-- Vessels 9074001 to 9074012, four to a fleet. The last one is laid up and in no fleet.
INSERT INTO vessel SELECT printf('90740%02d', i), 'Vessel ' || i, CASE WHEN i < 12 THEN 1 + (i - 1) / 4 END, CASE WHEN i <> 8 THEN 1 + i % 4 END,
    CASE i % 3 WHEN 0 THEN 'DEHAM' WHEN 1 THEN 'NLRTM' END FROM n WHERE i <= 12;

INSERT INTO crew_member SELECT i, 'Sailor ' || i, CASE WHEN i % 17 > 0 THEN 1 + i % 5 END, CASE WHEN i % 7 > 0 THEN date('now', '-' || (9000 + i * 31) || ' days') END FROM n WHERE i <= 150;
INSERT INTO certificate SELECT 1 + i % 150, 'STCW-' || i, CASE WHEN i % 5 > 0 THEN date('now', (i * 3) || ' days') END FROM n WHERE i <= 300;
-- The ship of today, and for every third sailor a former one: the former ship is seen because the record refers to it.
INSERT INTO assignment SELECT i, i, printf('90740%02d', 1 + i % 12), CASE WHEN i % 11 = 0 THEN 'joining' WHEN i % 13 = 0 THEN 'on leave' ELSE 'on board' END, date('now', '-' || i || ' days') FROM n WHERE i <= 150;
INSERT INTO assignment SELECT 1000 + i, i, printf('90740%02d', 1 + (i + 5) % 12), 'former', NULL FROM n WHERE i <= 150 AND i % 3 = 0;

INSERT INTO maintenance_job SELECT i, printf('90740%02d', 1 + i % 12), 'Job ' || i, CASE WHEN i % 4 > 0 THEN date('now', '-' || (i * 5) || ' days') END FROM n WHERE i <= 300;
INSERT INTO job_part SELECT 1 + i % 300, i, 'Part ' || i, 1 + i % 4 FROM n WHERE i <= 400;
INSERT INTO job_reading SELECT i, 1 + i % 300, CASE WHEN i % 9 > 0 THEN i * 0.25 END FROM n WHERE i <= 400;

INSERT INTO manual_page SELECT 'MAN-' || (1 + i % 6), 1 + i % 2, i, CAST('page ' || i AS BLOB) FROM n WHERE i <= 240;
INSERT INTO manual_issue SELECT 'MAN-' || (1 + i % 6), 1 + i % 2, 1 + i % 4 FROM n WHERE i <= 12 GROUP BY 1, 2, 3;
INSERT INTO noon_report SELECT 'N' || i, printf('90740%02d', 1 + i % 12), date('now', '-' || (i / 12) || ' days') || 'T12:00', i * 0.1, CASE WHEN i % 6 > 0 THEN i * -0.2 END, CASE i % 4 WHEN 0 THEN 'SGSIN' WHEN 1 THEN 'BRSSZ' END FROM n WHERE i <= 240;
DROP TABLE n;
COMMIT;
