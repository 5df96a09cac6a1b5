-- The Inventory Service's own tables. Its role is called like its database.
-- Every name is qualified: the role `relay`, which owns them, would otherwise create them in the schema of its own name.

CREATE TABLE public.stock (
    sku        text    PRIMARY KEY CHECK (sku <> ''),
    available  integer NOT NULL CHECK (available >= 0),
    supplied   bigint  NOT NULL CHECK (supplied >= available)
);

COMMENT ON COLUMN public.stock.available IS 'How many may still be reserved.';
COMMENT ON COLUMN public.stock.supplied IS
    'How many there have ever been: those that are available, and those of the reservations, confirmed ones too.';

CREATE TABLE public.stock_reservations (
    order_id      uuid        NOT NULL,
    sku           text        NOT NULL REFERENCES public.stock,
    quantity      integer     NOT NULL CHECK (quantity > 0),
    confirmed_at  timestamptz,
    PRIMARY KEY (order_id, sku)
);
CREATE INDEX stock_reservation_sku ON public.stock_reservations (sku);

COMMENT ON COLUMN public.stock_reservations.confirmed_at IS 'Since when it is sold. Null: it may still be released.';

GRANT SELECT, INSERT, UPDATE ON public.stock TO inventory;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.stock_reservations TO inventory;
