-- A small customer database for crm.toml and scripts/demo.sh: a tree of positions, accounts with teams, contacts,
-- opportunities. Everything is computed, so two runs on one day give the same rows; dates are counted from today, since the
-- definition has a window.

CREATE TABLE org(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT NOT NULL, list_price NUMERIC NOT NULL);
CREATE TABLE price_list(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE position(id INTEGER PRIMARY KEY, parent_id INTEGER REFERENCES position(id), org_id INTEGER NOT NULL REFERENCES org(id), name TEXT NOT NULL);
CREATE TABLE employee(id INTEGER PRIMARY KEY, position_id INTEGER NOT NULL REFERENCES position(id), name TEXT NOT NULL, email TEXT NOT NULL);
CREATE TABLE account(id INTEGER PRIMARY KEY, org_id INTEGER NOT NULL REFERENCES org(id), kind TEXT NOT NULL, name TEXT NOT NULL, city TEXT);
CREATE TABLE account_team(account_id INTEGER NOT NULL REFERENCES account(id), position_id INTEGER NOT NULL REFERENCES position(id), PRIMARY KEY(account_id, position_id));
CREATE TABLE address(id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES account(id), street TEXT NOT NULL, city TEXT NOT NULL);
CREATE TABLE contact(id INTEGER PRIMARY KEY, account_id INTEGER REFERENCES account(id), owner_id INTEGER REFERENCES employee(id), name TEXT NOT NULL, phone TEXT);
CREATE TABLE opportunity(id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES account(id), position_id INTEGER REFERENCES position(id), name TEXT NOT NULL, amount NUMERIC, closed_at TEXT);
CREATE TABLE opportunity_line(id INTEGER PRIMARY KEY, opportunity_id INTEGER NOT NULL REFERENCES opportunity(id), product_id INTEGER NOT NULL REFERENCES product(id), quantity INTEGER NOT NULL);
CREATE TABLE opportunity_team(opportunity_id INTEGER NOT NULL REFERENCES opportunity(id), position_id INTEGER NOT NULL REFERENCES position(id), active INTEGER NOT NULL, PRIMARY KEY(opportunity_id, position_id));
CREATE TABLE feedback(id TEXT PRIMARY KEY NOT NULL, employee_id INTEGER REFERENCES employee(id), text TEXT NOT NULL);

BEGIN;
CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i FROM n;

INSERT INTO org VALUES (1, 'North'), (2, 'South');
INSERT INTO product SELECT i, 'Product ' || i, i * 9.5 FROM n WHERE i <= 40;
INSERT INTO price_list VALUES (1, 'Standard'), (2, 'Partner');

-- Position 1 leads; 2, 3, 4 report to it; 5..7 to 2, 8..10 to 3, 11..13 to 4. One employee each, with the number of the position.
INSERT INTO position SELECT i, CASE WHEN i = 1 THEN NULL WHEN i <= 4 THEN 1 ELSE (i - 5) / 3 + 2 END, 1 + (i > 10), 'Position ' || i FROM n WHERE i <= 13;
INSERT INTO employee SELECT i, i, 'Employee ' || i, 'e' || i || '@example.com' FROM n WHERE i <= 13;

-- Account n belongs to the team of rep 5 + n mod 9.
INSERT INTO account SELECT i, 1 + i % 2, CASE WHEN i % 10 = 0 THEN 'house' ELSE 'customer' END, 'Account ' || i, CASE WHEN i % 23 > 0 THEN 'City ' || (i % 17) END FROM n WHERE i <= 300;
INSERT INTO account_team SELECT id, 5 + id % 9 FROM account;
INSERT INTO address SELECT i, 1 + i % 300, 'Street ' || i, 'City ' || (i % 17) FROM n WHERE i <= 600;
-- Some contacts have no account, some no owner, a few neither: those are on no node.
INSERT INTO contact SELECT i, CASE WHEN i % 31 > 0 THEN 1 + i % 300 END, CASE WHEN i % 13 > 0 THEN 5 + i % 9 END, 'Contact ' || i, '+49 ' || i FROM n WHERE i <= 900;
INSERT INTO opportunity SELECT i, 1 + i % 300, CASE WHEN i % 53 > 0 THEN 5 + i % 9 END, 'Opportunity ' || i, i * 100,
    CASE WHEN i % 3 = 0 THEN date('now', '-' || i % 800 || ' days') END FROM n WHERE i <= 1200;
INSERT INTO opportunity_line SELECT i, 1 + i % 1200, 1 + i % 40, 1 + i % 5 FROM n WHERE i <= 3000;
INSERT INTO opportunity_team SELECT id, 5 + (id + 3) % 9, id % 2 FROM opportunity WHERE id % 5 = 0;
INSERT INTO feedback SELECT 'F' || i, 1 + i % 13, 'Feedback ' || i FROM n WHERE i <= 20;
DROP TABLE n;
COMMIT;
