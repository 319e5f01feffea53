#pragma once
void test_simple() {}
