-- What is ordered, where an order says so.

CREATE TABLE public.order_lines (
    order_id  uuid    NOT NULL REFERENCES public.orders,
    sku       text    NOT NULL CHECK (sku <> ''),
    quantity  integer NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (order_id, sku)
);

GRANT SELECT, INSERT ON public.order_lines TO orders;
