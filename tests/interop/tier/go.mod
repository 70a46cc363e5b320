module watershed.test/tier

go 1.26
