-- The Order Service's own tables. Its role is called like its database.
-- Every name is qualified: the role `relay`, which owns them, would otherwise create them in the schema of its own name.

CREATE TABLE public.orders (
    id           uuid           PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id  uuid           NOT NULL,
    total        numeric(12, 2) NOT NULL CHECK (total > 0),
    state        text           NOT NULL DEFAULT 'PENDING' CHECK (state IN ('PENDING', 'APPROVED', 'CANCELLED')),
    reason       text,
    created_at   timestamptz    NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX orders_customer ON public.orders (customer_id, created_at);

GRANT SELECT, INSERT, UPDATE ON public.orders TO orders;
