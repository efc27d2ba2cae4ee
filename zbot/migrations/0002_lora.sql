-- What a picture is drawn with beside the model: a LoRA by the name of its file, and its strength.

ALTER TABLE job ADD COLUMN lora TEXT NOT NULL DEFAULT '';
ALTER TABLE job ADD COLUMN lora_scale REAL NOT NULL DEFAULT 1.0;
