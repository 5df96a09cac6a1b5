"""Changes in the write-ahead log become messages. Pure: values in, values out."""
