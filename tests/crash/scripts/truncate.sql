BEGIN;
INSERT INTO shop.item (id, name) VALUES (999, 'for a moment') ON CONFLICT DO NOTHING;
TRUNCATE shop.item;
INSERT INTO shop.item (id, name, price, body) SELECT n, 'again ' || n, n, shop.text() FROM generate_series(1, 300, 3) n;
COMMIT;
