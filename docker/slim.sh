#!/bin/sh
# Removes unused files from a virtual environment: headers, packages' own tests, and the compiler library
# that TensorFlow requires but never loads.
set -eu
cd "$1"/lib/python3.*/site-packages
rm -rf tensorflow/include pyarrow/include pyarrow/tests pandas/tests clang/native
for package in scipy sklearn; do
    [ ! -d "$package" ] || find "$package" -type d -name tests -prune -exec rm -rf {} +
done
