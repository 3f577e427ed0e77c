"""How configurations are read, listed and refused. The configurations themselves lie beside their owners."""
