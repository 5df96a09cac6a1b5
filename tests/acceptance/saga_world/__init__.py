"""A travel agency with sagas over flights, a hotel and a bank: real processes, whose failures are planned by rows."""
