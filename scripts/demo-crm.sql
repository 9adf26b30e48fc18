-- A small customer database for scripts/demo.sh: a tree of positions, accounts with teams, contacts, opportunities.
-- Everything is computed, so two runs on one day give the same rows.

CREATE TABLE org(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT NOT NULL, list_price NUMERIC NOT NULL);
CREATE TABLE price_list(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE position(id INTEGER PRIMARY KEY, parent_id INTEGER REFERENCES position(id), org_id INTEGER NOT NULL REFERENCES org(id), name TEXT NOT NULL);
CREATE TABLE employee(id INTEGER PRIMARY KEY, position_id INTEGER NOT NULL REFERENCES position(id), name TEXT NOT NULL, email TEXT NOT NULL);
CREATE TABLE account(id INTEGER PRIMARY KEY, org_id INTEGER NOT NULL REFERENCES org(id), kind TEXT NOT NULL, name TEXT NOT NULL, city TEXT);
CREATE TABLE account_team(account_id INTEGER NOT NULL REFERENCES account(id), position_id INTEGER NOT NULL REFERENCES position(id), PRIMARY KEY(account_id, position_id));
CREATE TABLE address(id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES account(id), street TEXT NOT NULL, city TEXT NOT NULL);
CREATE TABLE contact(id INTEGER PRIMARY KEY, account_id INTEGER REFERENCES account(id), owner_id INTEGER REFERENCES employee(id), name TEXT NOT NULL, phone TEXT);
CREATE TABLE opportunity(id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES account(id), position_id INTEGER NOT NULL REFERENCES position(id), name TEXT NOT NULL, amount NUMERIC, closed_at TEXT);
CREATE TABLE opportunity_line(id INTEGER PRIMARY KEY, opportunity_id INTEGER NOT NULL REFERENCES opportunity(id), product_id INTEGER NOT NULL REFERENCES product(id), quantity INTEGER NOT NULL);
CREATE TABLE opportunity_team(opportunity_id INTEGER NOT NULL REFERENCES opportunity(id), position_id INTEGER NOT NULL REFERENCES position(id), active INTEGER NOT NULL, PRIMARY KEY(opportunity_id, position_id));
CREATE TABLE feedback(id TEXT PRIMARY KEY NOT NULL, employee_id INTEGER REFERENCES employee(id), text TEXT NOT NULL);

INSERT INTO org VALUES (1, 'North'), (2, 'South');
INSERT INTO product SELECT value, 'Product ' || value, value * 9.5 FROM generate_series(1, 40);
INSERT INTO price_list VALUES (1, 'Standard'), (2, 'Partner');

-- Position 1 leads; 2, 3, 4 report to it; 5..7 to 2, 8..10 to 3, 11..13 to 4. One employee each, with the number of the position.
INSERT INTO position SELECT value, CASE WHEN value = 1 THEN NULL WHEN value <= 4 THEN 1 ELSE (value - 5) / 3 + 2 END, 1 + (value > 10), 'Position ' || value FROM generate_series(1, 13);
INSERT INTO employee SELECT value, value, 'Employee ' || value, 'e' || value || '@example.com' FROM generate_series(1, 13);

-- Account n belongs to the team of rep 5 + n mod 9.
INSERT INTO account SELECT value, 1 + value % 2, CASE WHEN value % 10 = 0 THEN 'house' ELSE 'customer' END, 'Account ' || value, 'City ' || (value % 17) FROM generate_series(1, 300);
INSERT INTO account_team SELECT id, 5 + id % 9 FROM account;
INSERT INTO address SELECT value, 1 + value % 300, 'Street ' || value, 'City ' || (value % 17) FROM generate_series(1, 600);
INSERT INTO contact SELECT value, 1 + value % 300, 5 + value % 9, 'Contact ' || value, '+49 ' || value FROM generate_series(1, 900);
INSERT INTO opportunity SELECT value, 1 + value % 300, 5 + value % 9, 'Opportunity ' || value, value * 100,
    CASE WHEN value % 3 = 0 THEN date('now', '-' || value % 800 || ' days') END FROM generate_series(1, 1200);
INSERT INTO opportunity_line SELECT value, 1 + value % 1200, 1 + value % 40, 1 + value % 5 FROM generate_series(1, 3000);
INSERT INTO opportunity_team SELECT id, 5 + (id + 3) % 9, id % 2 FROM opportunity WHERE id % 5 = 0;
