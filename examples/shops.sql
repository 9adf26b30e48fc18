-- A chain of ten shops for shops.toml: articles with prices, sales with lines and payments, stock, transfers between shops.
-- Everything is computed, so two runs on one day give the same rows; dates are counted from today, since the definition has
-- windows.

CREATE TABLE tax_rate(id INTEGER PRIMARY KEY, percent NUMERIC NOT NULL);
CREATE TABLE article(id INTEGER PRIMARY KEY, name TEXT NOT NULL COLLATE NOCASE, tax_rate_id INTEGER REFERENCES tax_rate(id));
CREATE TABLE barcode(code TEXT PRIMARY KEY NOT NULL, article_id INTEGER NOT NULL REFERENCES article(id));
CREATE TABLE price_list(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE shop(id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT, price_list_id INTEGER REFERENCES price_list(id));
CREATE TABLE price(id INTEGER PRIMARY KEY, article_id INTEGER NOT NULL REFERENCES article(id), price_list_id INTEGER REFERENCES price_list(id), amount NUMERIC NOT NULL, valid_to TEXT);
CREATE TABLE sale(id INTEGER PRIMARY KEY, shop_id INTEGER NOT NULL REFERENCES shop(id), sold_at TEXT, total NUMERIC);
CREATE TABLE sale_line(sale_id INTEGER NOT NULL REFERENCES sale(id), line INTEGER NOT NULL, article_id INTEGER NOT NULL REFERENCES article(id), quantity NUMERIC NOT NULL, PRIMARY KEY(sale_id, line)) WITHOUT ROWID;
CREATE TABLE payment(id INTEGER PRIMARY KEY, sale_id INTEGER NOT NULL REFERENCES sale(id), means TEXT NOT NULL, amount NUMERIC NOT NULL);
CREATE TABLE stock(shop_id INTEGER NOT NULL REFERENCES shop(id), article_id INTEGER NOT NULL REFERENCES article(id), quantity INTEGER NOT NULL DEFAULT 0, counted_at TEXT, PRIMARY KEY(shop_id, article_id));
CREATE TABLE transfer(id INTEGER PRIMARY KEY, from_shop_id INTEGER REFERENCES shop(id), to_shop_id INTEGER REFERENCES shop(id), sent_at TEXT);
CREATE TABLE transfer_line(transfer_id INTEGER NOT NULL REFERENCES transfer(id) ON DELETE CASCADE, article_id INTEGER NOT NULL REFERENCES article(id), quantity INTEGER NOT NULL, PRIMARY KEY(transfer_id, article_id));

BEGIN;
CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200) SELECT i FROM n;

INSERT INTO tax_rate VALUES (1, 19), (2, 7.0), (3, 0);
INSERT INTO article SELECT i, 'Article ' || i, CASE WHEN i % 19 > 0 THEN 1 + i % 3 END FROM n WHERE i <= 60;
INSERT INTO barcode SELECT printf('40%011d', i), 1 + i % 60 FROM n WHERE i <= 90;
INSERT INTO price_list VALUES (1, 'City'), (2, 'Country'), (3, 'Airport');
-- Shop 10 has no price list: it sells at the general prices.
INSERT INTO shop SELECT i, 'Shop ' || i, CASE WHEN i % 4 > 0 THEN 'City ' || (i % 3) END, CASE WHEN i < 10 THEN 1 + i % 3 END FROM n WHERE i <= 10;

-- Every article has a general price (no list) and one for two of the lists; a third of all has run out, some long ago.
INSERT INTO price SELECT i, 1 + i % 60, CASE WHEN i % 3 > 0 THEN 1 + i % 4 % 3 END, 1 + i % 50 + 0.99, CASE WHEN i % 2 = 0 THEN date('now', (i % 100 - 60) || ' days') END FROM n WHERE i <= 360;
INSERT INTO sale SELECT i, 1 + i % 10, date('now', '-' || (i / 4) || ' days') || ' 10:' || printf('%02d', i % 60) || ':00', i * 1.5 FROM n WHERE i <= 600;
INSERT INTO sale_line SELECT 1 + i % 600, i, 1 + i % 60, 1 + i % 3 FROM n WHERE i <= 1200;
INSERT INTO payment SELECT i, i, CASE i % 3 WHEN 0 THEN 'cash' ELSE 'card' END, i * 1.5 FROM n WHERE i <= 600;
INSERT INTO stock SELECT 1 + i % 10, 1 + i / 10 % 60, i % 40, CASE WHEN i % 5 > 0 THEN date('now', '-' || (i % 30) || ' days') END FROM n WHERE i < 600;
-- Goods that come from the wholesaler have no sender, those that go back no receiver.
INSERT INTO transfer SELECT i, CASE WHEN i % 7 > 0 THEN 1 + i % 10 END, CASE WHEN i % 11 > 0 THEN 1 + (i / 2 + 3) % 10 END, date('now', '-' || i || ' days') FROM n WHERE i <= 120;
INSERT INTO transfer_line SELECT 1 + i % 120, 1 + i / 4 % 60, 1 + i % 9 FROM n WHERE i <= 240;
DROP TABLE n;
COMMIT;
