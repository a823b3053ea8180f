-- many rows in a transaction, one in six of which is rolled back
\set low random(1, 300)
\set many random(0, 12)
\set dice random(1, 6)
BEGIN;
INSERT INTO shop.item (id, name, price, amount, body, photo)
    SELECT n, 'row ' || n, random() * 1000, 'NaN', shop.text(), convert_to(shop.text(), 'UTF8')
    FROM generate_series(:low, :low + :many) n
    ON CONFLICT (id) DO UPDATE SET price = excluded.price, seen = now();
UPDATE shop.note SET author = 'rows' WHERE id BETWEEN :low AND :low + 2;
UPDATE shop.item SET price = price + 1, tags = tags || :many WHERE id BETWEEN :low - 3 AND :low + 3;
DELETE FROM shop.item WHERE id BETWEEN :low + 5 AND :low + 7;
\if :dice = 1
ROLLBACK;
\else
COMMIT;
\endif
