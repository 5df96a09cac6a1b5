"""Small services that use the library as anybody would. They know each other only by their contracts."""
