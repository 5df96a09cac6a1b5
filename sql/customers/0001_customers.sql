-- The Customer Service's own tables. Its role is called like its database.
-- Every name is qualified: the role `relay`, which owns them, would otherwise create them in the schema of its own name.

CREATE TABLE public.customers (
    id            uuid           PRIMARY KEY DEFAULT gen_random_uuid(),
    name          text           NOT NULL CHECK (name <> ''),
    credit_limit  numeric(12, 2) NOT NULL CHECK (credit_limit >= 0),
    reserved      numeric(12, 2) NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    CONSTRAINT reserved_within_limit CHECK (reserved <= credit_limit)
);

CREATE TABLE public.credit_reservations (
    order_id     uuid           PRIMARY KEY,
    customer_id  uuid           NOT NULL REFERENCES public.customers,
    amount       numeric(12, 2) NOT NULL CHECK (amount > 0)
);
CREATE INDEX credit_reservation_customer ON public.credit_reservations (customer_id);

GRANT SELECT, INSERT, UPDATE ON public.customers TO customers;
GRANT SELECT, INSERT, DELETE ON public.credit_reservations TO customers;
