// Scenarios in C++: the line that comes in names one, the line that goes out is its result.
#include <algorithm>
#include <atomic>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <typeinfo>
#include <vector>
#include <cstdio>
#include <cstring>
#include <execinfo.h>

#define NOINLINE __attribute__((noinline))
using std::string;

// --- classes ---
struct Shape {
  virtual ~Shape() {}
  virtual int area() const = 0;
  virtual string name() const { return "shape"; }
};
struct Square : Shape {
  int side;
  explicit Square(int s) : side(s) {}
  int area() const override;
  string name() const override;
  NOINLINE int method(int n) const;
};
int Square::area() const { return side * side @{@|+ 1000@}; }
string Square::name() const { return @{"square"@|string("a square of side ") + std::to_string(side)@}; }
int Square::method(int n) const { return side + n @{@|* 2@}; }
static std::vector<std::unique_ptr<Shape>> shapes;

static string methods() {
  std::ostringstream o;
  for (auto &s : shapes) o << s->name() << ' ' << s->area() << ' ' << dynamic_cast<Square &>(*s).method(5) << ' ';
  return o.str();
}

namespace outer { namespace inner {
template <typename T> struct Holder {
  T value;
  NOINLINE T twice(T more) const;
};
template <typename T> T Holder<T>::twice(T more) const { return value + value + @{more@|more + more@}; }
} }
static string templates() {
  outer::inner::Holder<int> a{3};
  outer::inner::Holder<double> b{1.5};
  outer::inner::Holder<string> c{"ab"};
  std::ostringstream o;
  o << a.twice(1) << ' ' << b.twice(0.5) << ' ' << c.twice("c");
  return o.str();
}

static std::function<int(int)> held;
NOINLINE static std::function<int(int)> make(int n) { return [n](int x) { return n * x @{+ 1@|+ 2@}; }; }
static string lambdas() {
  std::vector<int> v{3, 1, 2};
  std::sort(v.begin(), v.end(), [](int a, int b) { return @{a < b@|a > b@}; });
  std::ostringstream o;
  o << held(10) << ' ' << make(2)(10) << ' ' << v[0] << v[1] << v[2];
  return o.str();
}

NOINLINE static string text(const string &s) {
  @{return s + "!";@|std::map<string, int> m;
  for (char c : s) m[string(1, c)]++;
  std::ostringstream o;
  for (auto &p : m) o << p.first << p.second;
  return o.str();@}
}
static string strings() { return text("hello"); }

@{@|struct Circle : Shape {  // a class, a table of virtual functions and type information that are new
  int area() const override { return 314; }
  string name() const override { return "circle"; }
};
struct NewError : std::runtime_error { using std::runtime_error::runtime_error; };
@}
NOINLINE static std::unique_ptr<Shape> create() { return std::unique_ptr<Shape>(@{new Square(9)@|new Circle@}); }
static string newclass() {
  auto s = create();
  std::ostringstream o;
  o << s->name() << ' ' << (dynamic_cast<Square *>(s.get()) != nullptr) << ' ' << (strstr(typeid(*s).name(), "Circle") != nullptr);
  return o.str();
}

// --- exceptions ---
struct Trace {
  string &log;
  const char *what;
  ~Trace() { log += what; }
};
NOINLINE static int thrower(int n) {
  if (n > 0) throw @{std::runtime_error("old " + std::to_string(n))@|std::out_of_range("new " + std::to_string(n))@};
  return n;
}
NOINLINE static int passer(int n, string &log) {
  Trace t{log, @{"p"@|"P"@}};
  return thrower(n) + 1;
}
NOINLINE static string catcher(int n) {
  string log;
  try { return std::to_string(passer(n, log)); }
  @{@|catch (const std::out_of_range &e) { return "range:" + log + e.what(); }@}
  catch (const std::exception &e) { return log + e.what(); }
}
NOINLINE static void rethrower(int n, string &log) {
  try { passer(n, log); }
  catch (...) { log += @{"r"@|"R"@}; throw; }
}
NOINLINE static int unchanged_thrower(int n) { if (n == 77) throw n; return n; }
NOINLINE static int changed_catcher(int n) {
  try { return unchanged_thrower(n) @{+ 1@|+ 2@}; } catch (int x) { return @{-x@|-2 * x@}; }
}
NOINLINE static int quiet(int n) noexcept { try { return thrower(n); } catch (...) { return @{-1@|-2@}; } }
static string exceptions() {
  string log;
  try { rethrower(2, log); } catch (const std::exception &e) { log += e.what(); }
  return catcher(1) + " " + catcher(-1) + " " + log + " " + std::to_string(changed_catcher(77)) + std::to_string(quiet(1));
}
@{@|NOINLINE static void brand_new_thrower() { throw NewError("brand new"); }
@}
NOINLINE static string newerror() {
  @{return "none";@|try { brand_new_thrower(); } catch (const NewError &e) { return e.what(); }
  return "lost";@}
}
// Threads that throw through patched code all the time, also while it is patched.
static std::atomic<long> wrong, thrown;
static std::atomic<bool> stop{false};
static void throwing() {
  while (!stop) {
    string log;
    try { passer(1, log); wrong++; }
    catch (const std::exception &e) { if (strcmp(e.what(), "old 1") && strcmp(e.what(), "new 1")) wrong++; }
    if (log != "p" && log != "P") wrong++;
    thrown++;
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  }
}
static string threads() {
  long before = thrown;
  while (thrown < before + 200) std::this_thread::yield();
  return std::to_string(wrong);
}

// --- statics ---
struct Costly {
  int value;
  explicit Costly(int v) : value(v) { made++; }
  ~Costly() {}
  static int made;
};
int Costly::made;
NOINLINE static int guarded() { static Costly once(5); return once.value += @{1@|100@}; }
NOINLINE static int new_guarded() { @{return 0;@|static Costly once(500); return once.value += 1;@} }
static string guards() {
  int old = guarded(), fresh = new_guarded();
  return std::to_string(old) + " " + std::to_string(fresh) + " " + std::to_string(Costly::made);
}

static thread_local string per_thread = "t";
static thread_local int plain_tls = 3;
NOINLINE static string use_tls() { per_thread += @{"o"@|"n"@}; plain_tls += @{1@|10@}; return per_thread + std::to_string(plain_tls); }
static string threadlocal() {
  string other;
  std::thread([&] { other = use_tls(); }).join();
  return other + " " + use_tls().back();
}

template <typename T> struct Unique { static int counter; };  // STB_GNU_UNIQUE
template <typename T> int Unique<T>::counter = 40;
inline int &inline_static() { static int counter = 50; return counter; }
NOINLINE static int unique() { return (Unique<int>::counter += @{1@|2@}) + (inline_static() += @{1@|2@}); }
static string uniques() { return std::to_string(unique()); }

// --- backtraces ---
NOINLINE static int depth_here(int n) { void *frames[64]; int d = backtrace(frames, 64); return d + n * 0; }
NOINLINE static int patched_frame(int n) { volatile int a[@{4@|40@}]; a[n % 4] = depth_here(n); return a[n % 4]; }
static int base_depth;
static string backtraces() {
  int d = patched_frame(3);
  if (!base_depth) base_depth = d;
  return @{"old "@|"new "@} + std::to_string(d == base_depth);
}

#define E(n) {#n, n}
static const std::map<string, string (*)()> all = {
  E(methods), E(templates), E(lambdas), E(strings), E(newclass), E(exceptions), E(newerror), E(threads), E(guards),
  E(threadlocal), E(uniques), E(backtraces)};

int main() {
  shapes.push_back(std::make_unique<Square>(3));
  held = make(7);
  std::vector<std::thread> pool;
  for (int i = 0; i < 4; i++) pool.emplace_back(throwing);
  std::cout << "ready" << std::endl;
  for (string line; std::getline(std::cin, line);) std::cout << all.at(line)() << std::endl;
  stop = true;
  for (auto &t : pool) t.join();
}
