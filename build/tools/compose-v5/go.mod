module github.com/composure-mesh/composure/build/tools/compose-v5

go 1.26

toolchain go1.26.11

require github.com/docker/compose/v5 v5.6.0
