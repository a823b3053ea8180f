-- one statement, one transaction: TOAST values left alone, changed, and taken away
\set id random(1, 300)
\set dice random(1, 8)
\if :dice <= 3
UPDATE shop.item SET price = random() * 100 WHERE id = :id;
\elif :dice = 4
UPDATE shop.item SET body = shop.text() WHERE id = :id;
\elif :dice = 5
UPDATE shop.item SET photo = NULL, amount = 'Infinity' WHERE id = :id;
\elif :dice = 6
INSERT INTO shop.item (id, body) VALUES (:id, repeat('long ', 600)) ON CONFLICT (id) DO NOTHING;
\elif :dice = 7
DELETE FROM shop.item WHERE id = :id;
\else
INSERT INTO shop.note VALUES (:id, 'public', NULL, shop.text()) ON CONFLICT (id) DO UPDATE SET body = excluded.body;
\endif
